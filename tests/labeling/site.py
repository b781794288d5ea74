"""A small project with people, and clients of its pages."""

import contextlib
import html
import json
import re

import sqlalchemy as sa
from starlette.testclient import (  # pyright: ignore[reportMissingImports]
  TestClient,
)

from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.web.app import build_app
from instructgpt_jax.labeling.web.settings import Settings
from tests.labeling import made

ADDRESS = "http://127.0.0.1:8765"


class Clock:
  """A clock that tests move."""

  def __init__(self, now=made.NOW):
    self.now = now

  def __call__(self):
    return self.now


class Site:
  """A store, its application, and a client for each user.

  Attributes:
    store: the store.
    clock: the application's clock.
    app: the application.
  """

  def __init__(self, store, **settings):
    self.store, self.clock = store, Clock()
    self.app = build_app(store, Settings(clock=self.clock, **settings))
    self._stack = contextlib.ExitStack()

  def anyone(self):
    """Returns a client without a session."""
    return TestClient(self.app, base_url=ADDRESS, follow_redirects=False)

  def client(self, name, role="labeler", **options):
    """Returns a client that a new user has logged in."""
    made.add_user(self.store, name, role, **options)
    return self.log_in(name)

  def log_in(self, name, password=None):
    """Returns a client that a user has logged in."""
    client = self.anyone()
    token = csrf_of(client.get("/login").text)
    password = password or f"password of {name}"
    response = client.post(
      "/login", data={"csrf": token, "name": name, "password": password}
    )
    assert response.status_code == 303, response.text
    client.headers["x-csrf-token"] = client.get(
      "/login", headers={"accept": "application/json"}
    ).json()["csrf"]
    return client


def find(pattern, text):
  """Returns the first group of a pattern in a text."""
  match = re.search(pattern, text)
  assert match, f"no {pattern} in {text[:2000]}"
  return match[1]


def csrf_of(page):
  """Returns the CSRF token of a page."""
  return find('name="csrf" value="([0-9a-f]+)"', page)


def text_of(page):
  """Returns a page's text without tags."""
  return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def get_work(client, task="ranking"):
  """Returns the next item as a program sees it."""
  return client.get(
    f"/tasks?task={task}", headers={"accept": "application/json"}
  ).json()


def ranking(ranks=(1, 2, 3), **changes):
  """Returns the content of a ranking."""
  content = {
    "ranks": list(ranks),
    "overall": [4] * len(ranks),
    "flags": [{}] * len(ranks),
    "notes": "",
    "cannot_judge": None,
  }
  return {**content, **changes}


def post_json(client, path, **body):
  """Posts JSON, and asks for JSON."""
  headers = {"accept": "application/json", "content-type": "application/json"}
  return client.post(path, content=json.dumps(body), headers=headers)


def submit(client, work, content):
  """Submits an item of `get_work`."""
  path = f"/tasks/{work['assignment']}/submit"
  return post_json(client, path, content=content, revision=work["revision"])


def add_item(store, task, payload, **values):
  """Returns the id of a new item."""
  row = {"kind": "", "overlap": 1, "gold": None, "created_at": made.NOW}
  with store.begin() as connection:
    return connection.execute(
      sa.insert(schema.items)
      .values({**row, "task": task, "payload": payload, **values})
      .returning(schema.items.c.id)
    ).scalar_one()


def count_labels(store):
  """Returns the number of labels."""
  with store.read() as connection:
    return connection.scalar(
      sa.select(sa.func.count()).select_from(schema.labels)
    )
