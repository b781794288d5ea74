"""Log-in, CSRF, headers, roles, other users' ids, and escaping."""

import itertools
import logging
import re

import pytest
import sqlalchemy as sa
from markdown_it import ruler

from instructgpt_jax.labeling import project, schema
from instructgpt_jax.labeling.people import invitations, sessions, users
from instructgpt_jax.labeling.web import app as app_lib
from instructgpt_jax.labeling.web import instructions, security
from instructgpt_jax.labeling.web.instructions import render_markdown
from tests.labeling import made, site

JSON = {"accept": "application/json"}
ROLES = ("owner", "reviewer", "labeler", "candidate")
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture
def pages(new_store):
  return site.Site(new_store)


def path_of(path, number=1):
  return path.replace("{id:int}", str(number)).replace(
    "{name}", "prompts.jsonl"
  )


def is_for(route, roles):
  """Returns whether a route has one of some roles."""
  return any(role in route[3] for role in roles)


@pytest.mark.parametrize(
  "route", [r for r in app_lib.ROUTES if r[3]], ids=lambda r: f"{r[1]}-{r[0]}"
)
def test_every_page_needs_a_log_in(pages, route):
  path, method, _, _ = route
  response = pages.anyone().request(method, path_of(path))
  if method == "GET":
    assert response.status_code == 303
    assert response.headers["location"].startswith("/login")
  else:
    assert response.status_code == 401


def test_every_page_checks_the_role(pages):
  clients = {role: pages.client(role.title(), role) for role in ROLES}
  refused = 0
  for (path, method, _, roles), role in itertools.product(
    app_lib.ROUTES, ROLES
  ):
    if roles and role not in roles:
      response = clients[role].request(method, path_of(path))
      assert response.status_code == 403, (path, method, role)
      refused += 1
  assert refused > 50
  for name in ("/export", "/export/rankings.jsonl"):
    assert clients["owner"].get(name).status_code in (200, 404)


@pytest.mark.parametrize(
  "route",
  [r for r in app_lib.ROUTES if "{id:int}" in r[0]],
  ids=lambda r: f"{r[1]}-{r[0]}",
)
def test_other_peoples_ids_do_not_exist(pages, route):
  """Work pages refuse another user's id, all pages one that does not exist."""
  path, method, _, roles = route
  made.add_items(pages.store, 2)
  ann = pages.client("Ann")
  assignment = site.get_work(ann)["assignment"]
  site.submit(ann, {"assignment": assignment, "revision": 0}, site.ranking())
  body = {"content": site.ranking(), "revision": 0, "reason": "x"}
  body |= {"rating": "3", "decision": "labeler", "active": "no"}
  numbers = [999, 2**63, 10**30]
  if path.startswith("/tasks"):
    numbers.append(assignment)
  for role in roles:
    client = pages.client(f"Other {role}", role)
    for number in numbers:
      target = path_of(path, number)
      if method == "GET":
        responses = [client.get(target), client.get(target, headers=JSON)]
      else:
        responses = [site.post_json(client, target, **body)]
      for response in responses:
        assert response.status_code == 404, (target, role, response.text)
        assert "Prompt 0" not in response.text
  with pages.store.read() as connection:
    (label,) = connection.execute(sa.select(schema.labels)).all()
  assert label.revision == 1


@pytest.mark.parametrize(
  "route",
  [r for r in app_lib.ROUTES if r[1] == "POST"],
  ids=lambda r: r[0],
)
def test_every_post_needs_a_csrf_token(pages, route):
  path, _, _, roles = route
  owner = pages.client("Olga", "owner")
  other = pages.client("Omar", "owner")
  client = owner if roles else pages.anyone()
  token = client.headers.pop("x-csrf-token", None)
  target = path_of(path)
  bad = [{}, {"csrf": ""}, {"csrf": "0" * 64}]
  bad.append({"csrf": other.headers["x-csrf-token"]})
  for fields in bad:
    response = client.post(target, data=fields)
    assert response.status_code == 403
    assert "another session" in response.text
  for headers in (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
  ):
    response = client.post(target, data={"csrf": token or ""}, headers=headers)
    assert response.status_code == 403


def test_all_answers_have_the_security_headers(pages):
  owner = pages.client("Olga", "owner")
  for path in ("/", "/people", "/nowhere", "/static/app.css", "/login"):
    headers = owner.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in headers
  assert owner.get("/people").headers["cache-control"] == "no-store"


def test_cookies_are_protected(new_store):
  made.add_user(new_store, "Ann")
  for https in (False, True):
    pages = site.Site(new_store, https=https)
    client = pages.anyone()
    client.base_url = site.ADDRESS.replace("http:", "https:")
    page = client.get("/login")
    data = {"csrf": site.csrf_of(page.text), "name": "Ann"}
    response = client.post(
      "/login", data={**data, "password": "password of Ann"}
    )
    assert response.status_code == 303
    for answer in (page, response):
      cookie = answer.headers["set-cookie"]
      assert "HttpOnly" in cookie and "SameSite=lax" in cookie
      assert ("Secure" in cookie) == https
      assert cookie.startswith("__Host-") == https
      assert ("strict-transport-security" in answer.headers) == https


def test_other_host_names_are_refused(pages):
  client = pages.anyone()
  response = client.get("/login", headers={"host": "evil.example"})
  assert response.status_code == 421
  assert "Log in" not in response.text


def test_log_ins_are_limited(pages):
  made.add_user(pages.store, "Ann")
  client = pages.anyone()
  token = site.csrf_of(client.get("/login").text)
  statuses = []
  for _ in range(30):
    response = client.post(
      "/login", data={"csrf": token, "name": "Ann", "password": "wrong"}
    )
    statuses.append(response.status_code)
  assert statuses[0] == 401 and statuses[-1] == 429
  response = client.post(
    "/login", data={"csrf": token, "name": "Ann", "password": "password of Ann"}
  )
  assert response.status_code == 429
  pages.clock.now += 86400
  assert pages.log_in("Ann").get("/").status_code == 200


def test_a_log_out_ends_the_session_on_the_server(pages):
  ann = pages.client("Ann")
  cookies = dict(ann.cookies)
  assert ann.post("/logout").status_code == 303
  thief = pages.anyone()
  thief.cookies.update(cookies)
  assert thief.get("/").headers["location"] == "/login"


def test_an_inactive_user_is_out_at_once(pages):
  owner = pages.client("Olga", "owner")
  ann = pages.client("Ann")
  ann_id = next(u.id for u in users.list_users(pages.store) if u.name == "Ann")
  assert ann.get("/").status_code == 200
  owner.post(f"/people/{ann_id}", data={"active": "no"})
  assert ann.get("/").status_code == 303


def test_a_large_body_is_refused(pages):
  ann = pages.client("Ann")
  response = ann.post("/tasks/1/draft", content=b"x" * (security.MAX_BODY + 1))
  assert response.status_code == 413
  fields = "&".join(f"f{i}=1" for i in range(2000))
  assert ann.post("/tasks/1/draft", content=fields).status_code == 400


@pytest.mark.parametrize(
  "path, safe",
  [
    ("/tasks/1?x=2", "/tasks/1?x=2"),
    ("//evil.example", "/"),
    ("/\\evil.example", "/"),
    ("https://evil.example", "/"),
    ("/a\nb", "/"),
    ("", "/"),
  ],
)
def test_a_log_in_continues_on_this_server_only(path, safe):
  assert security.safe_path(path) == safe


def test_texts_of_models_and_people_are_escaped(pages):
  """Every page shows an attack as text."""
  store = pages.store
  turns = [{"role": "user", "content": f"Prompt {ATTACK}"}]
  texts = [f"{i} {ATTACK}" for i in range(3)]
  ranking = {"turns": turns, "completions": texts, "sources": [ATTACK] * 3}
  site.add_item(store, "ranking", ranking, overlap=2, kind=ATTACK)
  site.add_item(store, "demonstration", {"turns": turns})
  site.add_item(
    store,
    "screening",
    {"kind": "demonstration", "turns": turns},
    overlap=None,
  )
  project.write_instructions(store, f"# Hi\n\n{ATTACK}", made.NOW)
  name = "<b>Ann</b>"
  ann, ben = pages.client(name), pages.client("Ben")
  carl = pages.client("Carl", "candidate")
  owner = pages.client("Olga", "owner")
  paths = []
  for client, ranks in ((ann, [1, 2, 3]), (ben, [3, 2, 1])):
    work = site.get_work(client)
    paths.append(f"/tasks/{work['assignment']}")
    content = site.ranking(ranks, notes=ATTACK)
    assert site.submit(client, work, content).status_code == 200
  demonstration = {"intent": ATTACK, "answer": ATTACK, "kind": "given"}
  for client, task in ((ann, "demonstration"), (carl, "screening")):
    work = site.get_work(client, task)
    assert site.submit(client, work, demonstration).status_code == 200
  owner.post("/people/invite", data={"kind": "labeler", "note": ATTACK})
  carl_id = next(u.id for u in users.list_users(store) if u.name == "Carl")
  visits = [(ann, paths[0]), (ann, "/"), (ann, "/labels")]
  visits += [
    (owner, path)
    for path in (
      *("/dashboard", "/adjudication", "/adjudication/1", "/evaluation"),
      *("/screening", f"/screening/{carl_id}", "/items", "/items/1"),
      *("/items/2", "/people", "/instructions", "/export"),
    )
  ]
  shown = 0
  for client, path in visits:
    response = client.get(path)
    assert response.status_code == 200, path
    assert "<script>alert" not in response.text, path
    assert "<img" not in response.text, path
    assert "<b>Ann" not in response.text, path
    shown += "&lt;script&gt;" in response.text
  assert shown > 9


def test_pages_have_no_inline_scripts_or_styles(pages):
  made.add_items(pages.store)
  owner = pages.client("Olga", "owner")
  ann = pages.client("Ann")
  visits = [(ann, f"/tasks/{site.get_work(ann)['assignment']}")]
  visits += [(owner, p) for p in ("/dashboard", "/people", "/instructions")]
  for client, path in visits:
    page = client.get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\s(style|on\w+)=", page)
    assert "http://" not in page and "https://" not in page


def test_markdown_has_no_html():
  html = render_markdown(
    f"# Title\n\n{ATTACK} [a](javascript:alert(1)) ![i](http://x/y.png) **b**"
  )
  assert "<h2>Title</h2>" in html and "<strong>b</strong>" in html
  assert "<script" not in html and "<img" not in html
  assert re.findall('href="([^"]*)"', html) == ["http://x/y.png"]


def test_threads_share_markdown_rules_only_once_they_are_compiled(monkeypatch):
  instructions._markdown.cache_clear()
  instructions._markdown()

  def fail(_):
    raise AssertionError("rules are compiled while threads use them")

  monkeypatch.setattr(ruler.Ruler, "__compile__", fail)
  html = render_markdown("# Title\n\n- *item*\n\n| a |\n|---|\n| b |\n")
  assert "<em>item</em>" in html and "<td>b</td>" in html


def test_secrets_are_in_no_log(pages, caplog, monkeypatch):
  caplog.set_level(logging.DEBUG)
  owner = pages.client("Olga", "owner")
  page = owner.post("/people/invite", data={"kind": "labeler", "note": ""}).text
  token = site.find(r"/invitation#([\w-]+)", page)
  client = pages.anyone()
  csrf = site.csrf_of(client.get("/invitation").text)
  data = {"csrf": csrf, "token": token, "name": "Eve"}
  password = "a password of Eve"

  def fail(*_):
    raise RuntimeError("failed")

  monkeypatch.setattr(sessions, "session_user", fail)
  response = owner.get("/people")
  assert response.status_code == 500 and "failed" in caplog.text
  monkeypatch.undo()
  for value in (token, "wrong"):
    client.post("/invitation", data={**data, "token": value, "password": "x"})
  response = client.post("/invitation", data={**data, "password": password})
  assert response.status_code == 303
  session = dict(client.cookies)
  secrets = [token, csrf, password, *session.values(), *owner.cookies.values()]
  for secret in secrets:
    assert len(secret) > 10 and secret not in caplog.text


def test_an_invitation_works_once(pages):
  token = invitations.invite(pages.store, "labeler", made.NOW, held_out=True)
  for name, status in (("Eve", 303), ("Mallory", 400)):
    client = pages.anyone()
    csrf = site.csrf_of(client.get("/invitation").text)
    data = {"csrf": csrf, "token": token, "name": name}
    response = client.post(
      "/invitation", data={**data, "password": "a long password"}
    )
    assert response.status_code == status
  made_users = [
    (u.name, u.role, u.held_out) for u in users.list_users(pages.store)
  ]
  assert made_users == [("Eve", "labeler", True)]


def test_a_password_can_be_changed(pages):
  ann = pages.client("Ann")
  page = ann.post(
    "/account/password", data={"old": "no", "new": "new password"}
  )
  assert page.status_code == 401
  response = ann.post(
    "/account/password",
    data={"old": "password of Ann", "new": "another password"},
  )
  assert response.status_code == 303
  assert ann.get("/").status_code == 303
  pages.log_in("Ann", "another password")
