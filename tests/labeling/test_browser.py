"""Chromium drives the pages of a real server: mouse, keyboard, two people,
killed servers, narrow screens."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import sqlalchemy as sa

from instructgpt_jax.labeling import project, schema, store
from instructgpt_jax.labeling.people import invitations, users
from tests.interop.tiny import library
from tests.labeling import made, site

playwright = library("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
  CHROMIUM is None, reason="no chromium on this machine"
)
SECONDS = 30
START_SECONDS = 300  # on a busy machine
ATTACK = (
  "<script>window.attacked = 1</script>"
  '<img src="x" onerror="window.attacked = 1"> </textarea>"\'>'
)


@pytest.fixture(scope="module")
def browser():
  with playwright.sync_playwright() as driver:
    with driver.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
    ) as chromium:
      yield chromium


class Server:
  """The command `serve` on one port, which can be killed and started again."""

  def __init__(self, path):
    self.path = path
    with socket.create_server(("127.0.0.1", 0)) as free:
      self.port = free.getsockname()[1]
    self.url = f"http://127.0.0.1:{self.port}"
    self._process = None
    self.start()

  def start(self):
    self._process = subprocess.Popen(
      [sys.executable, "-m", "instructgpt_jax.labeling", "serve"]
      + [f"--store={self.path}", f"--port={self.port}"],
      env={**os.environ, "BROWSER": "true"},
    )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
      assert self._process.poll() is None, "the server has ended"
      with contextlib.suppress(urllib.error.URLError, ConnectionError):
        urllib.request.urlopen(f"{self.url}/login", timeout=5)
        return
      time.sleep(0.2)
    self.kill()
    raise TimeoutError("the server does not answer")

  def kill(self):
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()


class World:
  """A store with its server, and browser windows of its users."""

  def __init__(self, made_store, server, browser):
    self.store, self.server, self._browser = made_store, server, browser
    self._contexts = []
    self.problems = []

  def window(self, name, *, width=1280, height=860, path="/"):
    """Returns a page of a browser of its own, after a log-in."""
    context = self._browser.new_context(
      viewport={"width": width, "height": height}
    )
    self._contexts.append(context)
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    page.on("pageerror", lambda error: self.problems.append(str(error)))
    page.on("console", self._note)
    if name:
      page.goto(f"{self.server.url}/login")
      page.fill("#name", name)
      page.fill("#password", f"password of {name}")
      page.keyboard.press("Enter")
      page.wait_for_url(lambda url: "login" not in url)
    page.goto(self.server.url + path)
    return page

  def _note(self, message):
    if "Content Security Policy" in message.text:
      self.problems.append(message.text)

  def contents(self):
    """Returns the contents of all labels, in order."""
    labels = schema.labels
    with self.store.read() as connection:
      return list(
        connection.scalars(sa.select(labels.c.content).order_by(labels.c.id))
      )

  def close(self):
    for context in self._contexts:
      context.close()


@pytest.fixture
def world(tmp_path, browser):
  path = tmp_path / "labels.db"
  made_store = store.open_store(path, create=True)
  with made_store.begin() as connection:
    connection.execute(
      sa.insert(schema.project).values(id=1, settings={"title": "Test"})
    )
  server = Server(path)
  world = World(made_store, server, browser)
  yield world
  world.close()
  server.kill()
  made_store.close()
  assert world.problems == []


def wait_for_status(page, text):
  page.wait_for_function(
    "text => document.getElementById('status').textContent.startsWith(text)",
    arg=text,
  )


def drag(page, letter, lane):
  """Drags an answer's chip into a lane of the board with the mouse."""
  chip = page.locator(".chip", has_text=letter).bounding_box()
  target = page.locator(f".chips[data-rank='{lane}']").bounding_box()
  mouse = page.mouse
  mouse.move(chip["x"] + chip["width"] / 2, chip["y"] + chip["height"] / 2)
  mouse.down()
  x = target["x"] + target["width"] / 2
  y = target["y"] + target["height"] - 6
  mouse.move(x + 8, y - 4, steps=12)
  mouse.move(x, y, steps=4)
  mouse.up()


def ranks_by_text(page, content):
  """Returns letter -> stored rank, by the texts that the page shows."""
  texts = page.locator(".card .text-block").all_inner_texts()
  return [content["ranks"][int(text.split()[-1])] for text in texts]


def test_a_ranking_by_drag_with_a_tie(world):
  made.add_items(world.store, completions=4)
  made.add_user(world.store, "Ann")
  page = world.window("Ann", path="/tasks")
  for letter, lane in (("A", 2), ("B", 1), ("C", 2), ("D", 4), ("D", 3)):
    drag(page, letter, lane)
  values = [page.locator(f"#rank-{i}").input_value() for i in range(4)]
  assert values == ["2", "1", "2", "3"]
  chips = page.locator(".chips[data-rank='2'] .chip")
  assert chips.all_inner_texts() == ["A", "C"]
  assert chips.first.get_attribute("aria-label") == (
    "Answer A, rank 2 of 4, tied with C"
  )
  for i in range(4):
    page.locator(f"input[name=overall-{i}][value='{7 - i}']").check()
  page.locator("input[name=flag-3-hallucination]").check()
  texts = page.locator(".card .text-block").all_inner_texts()
  page.click("#submit")
  page.wait_for_url("**/tasks?*")
  (content,) = world.contents()
  indices = [int(text.split()[-1]) for text in texts]
  assert [content["ranks"][i] for i in indices] == [2, 1, 2, 3]
  assert [content["overall"][i] for i in indices] == [7, 6, 5, 4]
  assert [content["flags"][i]["hallucination"] for i in indices] == [
    *(False, False, False),
    True,
  ]


def test_a_ranking_by_keyboard(world):
  made.add_items(world.store, completions=4)
  made.add_user(world.store, "Ann")
  page = world.window("Ann", path="/tasks")
  keys = page.keyboard
  keys.press("?")
  assert page.locator("#shortcuts").is_visible()
  assert "Undo" in page.locator("#shortcuts").inner_text()
  keys.press("Escape")
  keys.press("a")
  focused = page.evaluate(
    "getComputedStyle(document.activeElement).outlineStyle"
  )
  assert focused == "solid"
  for key in ("3", "Shift+Digit6", "ArrowRight", "1", "Shift+Digit7"):
    keys.press(key)
  for key in ("c", "4", "ArrowUp", "ArrowUp", "ArrowDown", "Shift+Digit2"):
    keys.press(key)
  for key in ("d", "2", "Shift+Digit1", "0", "Control+z"):
    keys.press(key)
  # The lists and radio buttons of the form work by keyboard alone as well.
  page.locator("#rank-1").focus()
  keys.press("2")
  values = [page.locator(f"#rank-{i}").input_value() for i in range(4)]
  assert values == ["3", "2", "3", "2"]
  assert page.locator("#announce").inner_text().startswith("Answer D, rank 2")
  texts = page.locator(".card .text-block").all_inner_texts()
  keys.press("Control+Enter")
  page.wait_for_url("**/tasks?*")
  (content,) = world.contents()
  indices = [int(text.split()[-1]) for text in texts]
  assert [content["ranks"][i] for i in indices] == [2, 1, 2, 1]
  assert [content["overall"][i] for i in indices] == [6, 7, 2, 1]


def test_errors_are_shown_beside_their_fields(world):
  made.add_items(world.store, completions=2)
  made.add_user(world.store, "Ann")
  page = world.window("Ann", path="/tasks")
  page.select_option("#rank-0", "1")
  page.click("#submit")
  page.wait_for_selector("#errors:not([hidden])")
  links = page.locator("#errors a").all_inner_texts()
  assert len(links) == 3 and links[-1].startswith("Answer B: ")
  assert page.locator("#rank-1").get_attribute("aria-invalid") == "true"
  page.locator("#errors a").last.click()
  assert page.evaluate("document.activeElement.name") == "overall-1"
  page.locator("#cannot_judge").check()
  page.fill("#cannot_judge_reason", "In Dutch")
  page.click("#submit")
  page.wait_for_url("**/tasks?*")
  assert world.contents()[0]["cannot_judge"] == "In Dutch"


def test_demonstrations(world):
  site.add_item(
    world.store,
    "demonstration",
    {"turns": [{"role": "user", "content": "Why is the sky blue?"}]},
  )
  site.add_item(world.store, "demonstration", {})
  made.add_user(world.store, "Ann")
  page = world.window("Ann", path="/tasks?task=demonstration")
  for _ in range(2):
    page.fill("#intent", "to learn")
    if page.locator("input[name=kind]").count():
      page.locator("input[name=kind][value=few_shot]").check()
      assert page.locator("#answer").is_hidden()
      page.fill("#prompt", "Translate.")
      for i in range(3):
        page.fill(f"#question-{i}", f"q{i}")
        page.fill(f"#answer-{i}", f"a{i}")
      page.click("#add-example")
      assert page.evaluate("document.activeElement.id") == "question-3"
    else:
      page.fill("#answer", "Air scatters blue light.")
      count = page.locator("[data-count-of=answer]")
      assert count.inner_text().startswith("24 characters")
    before = page.url
    page.keyboard.press("Control+Enter")
    page.wait_for_url(lambda url, before=before: url != before)
  contents = {content["kind"]: content for content in world.contents()}
  assert contents["given"]["answer"] == "Air scatters blue light."
  assert contents["few_shot"]["examples"] == [
    [f"q{i}", f"a{i}"] for i in range(3)
  ]


def test_a_draft_survives_a_killed_server_and_another_device(world):
  made.add_items(world.store, completions=2)
  made.add_user(world.store, "Ann")
  page = world.window("Ann", path="/tasks")
  page.fill("#notes", "before")
  wait_for_status(page, "Saved")
  world.server.kill()
  page.fill("#notes", "while it was down")
  wait_for_status(page, "Not saved; trying again")
  # The browser keeps what is typed after the draft that it tries to send.
  page.fill("#notes", "while it was still down")
  page.wait_for_function(
    "() => Object.entries(localStorage).some(([key, copy]) =>"
    " key.startsWith('draft:') && copy.includes('still'))"
  )
  page.select_option("#rank-0", "2")
  world.server.start()
  wait_for_status(page, "Saved")
  page.wait_for_function(
    "() => Object.keys(localStorage).every(key => !key.startsWith('draft:'))"
  )
  phone = world.window("Ann", width=400, height=800, path="/tasks")
  assert phone.locator("#notes").input_value() == "while it was still down"
  assert phone.locator("#rank-0").input_value() == "2"
  # A page that is closed while the server is down finds its text again.
  world.server.kill()
  phone.fill("#notes", "closed too early")
  wait_for_status(phone, "Not saved; trying again")
  phone.goto("about:blank")
  world.server.start()
  phone.goto(world.server.url + "/tasks")
  wait_for_status(phone, "Saved")
  assert phone.locator("#notes").input_value() == "closed too early"


def test_a_long_draft_is_saved(world):
  site.add_item(
    world.store,
    "demonstration",
    {"turns": [{"role": "user", "content": "Count."}]},
  )
  made.add_user(world.store, "Ann")
  page = world.window("Ann", path="/tasks")
  page.fill("#answer", "é" * 19_000)  # 114,000 bytes in a form
  wait_for_status(page, "Saved")
  page.reload()
  assert len(page.locator("#answer").input_value()) == 19_000


def test_two_pages_of_one_item_do_not_overwrite_each_other(world):
  made.add_items(world.store, completions=2)
  made.add_user(world.store, "Ann")
  first = world.window("Ann", path="/tasks")
  second = world.window("Ann", path="/tasks")
  first.fill("#notes", "first")
  wait_for_status(first, "Saved")
  second.fill("#notes", "second")
  second.wait_for_selector("#conflict:not([hidden])")
  second.click("#keep-mine")
  wait_for_status(second, "Saved")
  first.fill("#notes", "first again")
  first.wait_for_selector("#conflict:not([hidden])")
  first.click("#take-theirs")
  first.wait_for_function(
    "() => document.getElementById('notes').value === 'second'"
  )


def test_two_labelers_on_the_last_open_item(world):
  made.add_items(world.store, completions=2, overlap=1)
  pages = []
  for name in ("Ann", "Ben"):
    made.add_user(world.store, name)
    pages.append(world.window(name))
  for page in pages:
    page.evaluate("setTimeout(() => location.assign('/tasks'), 50)")
  headings = []
  for page in pages:
    page.wait_for_url(re.compile("/tasks"))
    page.wait_for_selector("h1")
    headings.append(page.locator("h1").inner_text())
  assert sorted(headings) == ["Nothing left to do", "Rank the answers"]


def test_log_ins_are_limited(world):
  made.add_user(world.store, "Ann")
  page = world.window("", path="/login")
  messages = []
  for _ in range(12):
    page.fill("#name", "Ann")
    page.fill("#password", "wrong")
    with page.expect_navigation():
      page.keyboard.press("Enter")
    messages.append(page.locator("[role=alert]").inner_text())
  assert "wrong" in messages[0]
  assert "Too many log-ins" in messages[-1]


def test_an_invitation_link_makes_an_account(world):
  token = invitations.invite(world.store, "labeler", time.time())
  page = world.window("", path=f"/invitation#{token}")
  assert page.locator("#token").input_value() == token
  assert token not in page.url
  page.fill("#name", "Eve")
  page.fill("#password", "a long password")
  page.keyboard.press("Enter")
  page.wait_for_selector("text=Hello, Eve")


def test_a_comparison_and_screening_by_keyboard(world):
  site.add_item(
    world.store,
    "comparison",
    {"turns": [], "completions": ["text 0", "text 1"]},
  )
  site.add_item(
    world.store,
    "screening",
    {"kind": "sensitive", "texts": ["t"]},
    overlap=None,
  )
  made.add_user(world.store, "Ann")
  made.add_user(world.store, "Carl", "candidate")
  page = world.window("Ann", path="/tasks")
  texts = page.locator(".card .text-block").all_inner_texts()
  page.keyboard.press("2")
  page.keyboard.press("Control+Enter")
  page.wait_for_url("**/tasks?*")
  page = world.window("Carl", path="/tasks")
  page.keyboard.press("Tab")
  page.locator("input[name=sensitive-0]").first.focus()
  page.keyboard.press("ArrowRight")
  page.keyboard.press("Control+Enter")
  page.wait_for_url("**/tasks?*")
  comparison, screening = world.contents()
  assert comparison["confidence"] == (2 if texts[0] == "text 0" else 8)
  assert screening["sensitive"] == [False]


_UNNAMED = """() => [...document.querySelectorAll(
  "input:not([type=hidden]), select, textarea, button, a, fieldset")]
  .filter(e => e.checkVisibility())
  .filter(e => {
    const by = e.getAttribute("aria-labelledby");
    const name = e.getAttribute("aria-label")
      || (by && document.getElementById(by)?.textContent)
      || [...(e.labels ?? [])].map(l => l.textContent).join("")
      || e.querySelector?.(":scope > legend")?.textContent
      || (e.matches("a, button") && e.textContent);
    return !name || !name.trim();
  }).map(e => e.outerHTML.slice(0, 200))"""
_OVERFLOW = (
  "document.documentElement.scrollWidth - document.documentElement.clientWidth"
)


@pytest.mark.parametrize("width", [400, 1280])
def test_every_page_fits_is_named_and_runs_no_foreign_script(world, width):
  turns = [{"role": "user", "content": f"{ATTACK} {'long' * 200}"}]
  texts = [f"{ATTACK} {i} {'word' * 150}" for i in range(9)]
  payload = {"turns": turns, "completions": texts, "sources": ["x"] * 9}
  (item,) = [
    site.add_item(world.store, "ranking", payload, overlap=2, kind=ATTACK)
  ]
  site.add_item(
    world.store, "comparison", {**payload, "completions": texts[:2]}
  )
  site.add_item(world.store, "demonstration", {"turns": turns})
  for kind in ("sensitive", "groups", "demonstration"):
    screening = {"kind": kind, "turns": turns, "texts": texts[:3]}
    site.add_item(world.store, "screening", screening, overlap=None)
  project.write_instructions(world.store, f"# A\n\n{ATTACK}", time.time())
  for name, role in (
    *(("Ann", "labeler"), ("Ben", "labeler")),
    *(("Carl", "candidate"), ("Olga", "owner")),
  ):
    made.add_user(world.store, name, role)
  tasks = ("ranking", "comparison", "demonstration")
  carl = next(u for u in users.list_users(world.store) if u.name == "Carl")
  paths = {
    "Ann": ["/", *(f"/tasks?task={t}" for t in tasks), "/labels", "/account"],
    "Carl": ["/", "/tasks"],
    "Olga": [
      *("/dashboard", "/items", f"/items/{item}", "/people", "/adjudication"),
      *(f"/adjudication/{item}", "/evaluation", "/screening", "/export"),
      *(f"/screening/{carl.id}", "/instructions", "/nowhere"),
    ],
  }
  for name, visited in paths.items():
    page = world.window(name, width=width)
    for path in visited:
      page.goto(world.server.url + path)
      page.wait_for_load_state()
      assert page.evaluate(_OVERFLOW) <= 0, path
      assert page.evaluate(_UNNAMED) == [], path
      assert page.evaluate("window.attacked") is None, path
      assert page.locator("h1").count() == 1, path
    if name == "Ann":
      page.goto(world.server.url + "/tasks?task=ranking")
      page.fill("#notes", ATTACK)
      page.select_option("#rank-0", "1")
      wait_for_status(page, "Saved")
      page.mouse.wheel(0, 3000)
      page.wait_for_timeout(200)
      # The prompt and the board stay in view while answers are read.
      box = page.locator(".prompt").bounding_box()
      assert 0 <= box["y"] < 300
      box = page.locator(".bar").bounding_box()
      assert abs(box["y"] + box["height"] - 860) < 2
      page.reload()
      assert page.locator("#notes").input_value() == ATTACK


def test_the_owner_closes_items_and_previews_instructions(world):
  made.add_items(world.store, 2)
  made.add_user(world.store, "Olga", "owner")
  made.add_user(world.store, "Ann")
  late = world.window("Ann", path="/tasks")
  page = world.window("Olga", path="/items")
  page.locator("button", has_text="Close item 1").click()
  page.wait_for_selector("tr:first-child .tag:has-text('closed')")
  # A page whose drafts are refused says so, and does not repeat them.
  posts = []
  late.on("request", lambda request: posts.append(request.method))
  late.fill("#notes", "too late")
  wait_for_status(late, "This item is closed")
  late.click("#submit")
  late.wait_for_timeout(1500)
  assert 2 <= posts.count("POST") <= 3
  assert page.url.endswith("/items")  # HTMX replaced the row
  assert page.locator(".tag", has_text=re.compile("^open$")).count() == 1
  page.goto(world.server.url + "/instructions")
  page.click("summary")
  page.fill("#markdown", f"# New\n\n{ATTACK}")
  page.wait_for_selector("#preview h2:has-text('New')")
  assert page.evaluate("window.attacked") is None
  page.click("text=Publish")
  page.wait_for_selector("text=version 1")
