"""Requests that no page sends: never a failure of the server, nothing lost."""

import random

import pytest
import sqlalchemy as sa

from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import invitations, sessions, users
from tests.labeling import made, site

HUGE = 10**400
HALF = "\ud83d"  # of an emoji
ODD = (None, True, -1, 0, 5, 2.5, HUGE, "", "x", HALF, "a\0b", "\u202e", [],
       [1], [None] * 3, [[1]], [{}], [HUGE] * 3, {}, {"a": HALF}, {HALF: 1},
       ["é"] * 3, [["a"], ["b", "c"]], [[{}, []], [1, 2]])  # fmt: skip
FIELDS = ("ranks", "overall", "flags", "notes", "cannot_judge", "confidence",
          "kind", "intent", "prompt", "examples", "answer", "sensitive",
          "groups", "other", "rank-99", "flag-7-x\n", "overall-٣",
          "rank-" + "9" * 30, "question-1", "answer-99999", HALF,
          "a\0b")  # fmt: skip
TURNS = [{"role": "user", "content": "Name a river."}]
ITEMS = (
  ("ranking", {"turns": TURNS, "completions": ["a", "b", "c"]}),
  ("comparison", {"turns": TURNS, "completions": ["a", "b"]}),
  ("demonstration", {"turns": TURNS}),
  ("demonstration", {"number": 1}),
  ("screening", {"kind": "sensitive", "texts": [f"t{i}" for i in range(30)]}),
  ("screening", {"kind": "groups"}),
)


@pytest.fixture
def pages(new_store):
  return site.Site(new_store)


@pytest.mark.parametrize("number", range(len(ITEMS)))
def test_odd_contents_are_drafts_that_can_be_opened(pages, number):
  task, payload = ITEMS[number]
  site.add_item(pages.store, task, payload, overlap=None)
  role = "candidate" if task == "screening" else "labeler"
  ann = pages.client("Ann", role)
  work = site.get_work(ann, task)
  path, revision = f"/tasks/{work['assignment']}", 0
  rng = random.Random(number)
  for _ in range(25):
    names = rng.sample(FIELDS, rng.randint(1, 6))
    content = {name: rng.choice(ODD) for name in names}
    answer = site.post_json(
      ann, f"{path}/draft", content=content, revision=revision
    )
    assert answer.status_code == 200, (content, answer.text)
    revision = answer.json()["revision"]
    assert ann.get(path).status_code == 200, content
    answer = site.post_json(
      ann, f"{path}/submit", content=content, revision=revision
    )
    assert answer.status_code == 422, (content, answer.text)
  owner = pages.client("Olga", "owner")
  assert owner.get("/items/1").status_code == 200


@pytest.mark.parametrize("seconds", [HUGE, -HUGE, [], {}, "x", "1e999", None])
def test_odd_times_count_nothing(pages, seconds):
  made.add_items(pages.store)
  ann = pages.client("Ann")
  path = f"/tasks/{site.get_work(ann)['assignment']}/draft"
  pages.clock.now += 60
  answer = site.post_json(ann, path, content={}, revision=0, seconds=seconds)
  assert answer.status_code == 200
  with pages.store.read() as connection:
    seconds = connection.scalar(sa.select(schema.assignments.c.active_seconds))
  assert seconds == 0


@pytest.mark.parametrize("token", [5, None, [], {}, HALF, "é", "0" * 64])
def test_an_odd_csrf_token_is_wrong(pages, token):
  ann = pages.client("Ann")
  del ann.headers["x-csrf-token"]
  assert site.post_json(ann, "/logout", csrf=token).status_code == 403
  assert ann.get("/account").status_code == 200


@pytest.mark.parametrize(
  "headers, status",
  [
    ({"host": "[::1"}, 421),
    ({"host": ""}, 421),
    ({"host": b"\xe9vil"}, 421),
    ({"host": "127.0.0.1.evil.example:8765"}, 421),
    ({"host": "127.0.0.1:port"}, 421),
    ({"origin": "http://["}, 200),
    ({"cookie": "labeling_session=1.x.y; a=\"; b"}, 200),
  ],
)  # fmt: skip
def test_odd_headers_of_a_page(pages, headers, status):
  response = pages.anyone().get("/login", headers=headers)
  assert response.status_code == status
  response = pages.anyone().post("/login", headers=headers)
  assert response.status_code == (403 if status == 200 else status)


def test_texts_of_forms_that_no_store_has_are_replaced(pages):
  owner = pages.client("Olga", "owner")
  for text in (HALF, "a\0b"):
    for path, body in (
      ("/people/invite", {"kind": "labeler", "note": text}),
      ("/instructions", {"markdown": f"# {text}"}),
      ("/instructions/preview", {"markdown": text}),
      ("/people/invitations/revoke", {"invitation": text}),
      ("/account/password", {"old": text, "new": text}),
    ):
      response = site.post_json(owner, path, **body)
      assert response.status_code < 500, (path, response.text)
  assert owner.get("/people").status_code == 200
  assert owner.get("/instructions").status_code == 200


def test_a_changed_cookie_is_refused_before_its_session_is_looked_up(
  pages, monkeypatch
):
  ann = pages.client("Ann")
  (name,) = (n for n in ann.cookies if n.endswith("session"))
  cookie = ann.cookies[name]
  looked_up = []
  look_up = sessions.session_user

  def count(store, token, now):
    looked_up.append(token)
    return look_up(store, token, now)

  monkeypatch.setattr(sessions, "session_user", count)
  assert ann.get("/").status_code == 200 and len(looked_up) == 1
  key, token, signature = cookie.split(".")
  for forged in (
    token,
    f"{key}.{token}.{'0' * 64}",
    f"{key}.{token}x.{signature}",
    f"2.{token}.{signature}",
    f"{key}.{token}.",
  ):
    thief = pages.anyone()
    thief.cookies.set(name, forged)
    response = thief.get("/")
    assert response.headers["location"] == "/login"
  assert len(looked_up) == 1


def test_a_restarted_server_knows_its_sessions(new_store):
  ann = site.Site(new_store).client("Ann")
  again = site.Site(new_store).anyone()
  again.cookies.update(ann.cookies)
  assert again.get("/").status_code == 200


def test_a_failure_of_the_database_logs_no_values(pages, caplog):
  user = made.add_user(pages.store, "Ann")
  secret = "a secret that Ann wrote"
  with pytest.raises(sa.exc.IntegrityError) as error:
    with pages.store.begin() as connection:
      connection.execute(
        sa.insert(schema.users).values(
          id=user.id, name=secret, name_key=secret, role="labeler",
          held_out=False, password=secret, active=True, created_at=0.0,
        )
      )  # fmt: skip
  assert secret not in str(error.value)


def test_labels_of_held_out_labelers_never_become_training_labels(pages):
  made.add_items(pages.store, 1)
  owner = pages.client("Olga", "owner")
  hal = pages.client("Hal", held_out=True)
  site.submit(hal, site.get_work(hal), site.ranking([3, 2, 1]))
  hal_id = next(u.id for u in users.list_users(pages.store) if u.name == "Hal")
  for kind in ("labeler", "reviewer", "owner", "candidate"):
    response = owner.post(f"/people/{hal_id}", data={"kind": kind})
    assert response.status_code == 409, kind
  assert owner.get("/export/rankings.jsonl").status_code == 404
  assert users.get_user(pages.store, hal_id).held_out
  response = owner.post(f"/people/{hal_id}", data={"active": "no"})
  assert response.status_code == 303


def test_held_out_candidates_are_people(pages):
  owner = pages.client("Olga", "owner")
  pages.client("Carl", "candidate", held_out=True)
  page = owner.get("/people")
  assert page.status_code == 200 and "Carl" in page.text
  carl = users.list_users(pages.store)[-1]
  for decision in ("rejected", "undecided", "held out", "labeler"):
    response = owner.post(
      f"/screening/{carl.id}/decision", data={"decision": decision, "note": ""}
    )
    assert response.status_code == 303, decision
  assert not users.get_user(pages.store, carl.id).held_out


def test_an_invitation_is_revoked_on_the_page(pages):
  owner = pages.client("Olga", "owner")
  token = invitations.invite(pages.store, "labeler", made.NOW, note="Eve")
  page = owner.get("/people").text
  number = site.find(r'name="invitation" value="([0-9a-f]+)"', page)
  response = owner.post(
    "/people/invitations/revoke", data={"invitation": number}
  )
  assert response.status_code == 303
  assert "Eve" not in owner.get("/people").text
  client = pages.anyone()
  csrf = site.csrf_of(client.get("/invitation").text)
  response = client.post(
    "/invitation",
    data=dict(csrf=csrf, token=token, name="Eve", password="a long password"),
  )
  assert response.status_code == 404 and "no such invitation" in response.text
