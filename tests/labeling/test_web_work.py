"""Work pages: items, drafts, submission, own labels; who may see what."""

import re

import pytest
import sqlalchemy as sa

from instructgpt_jax.labeling import forms, labels, project, schema
from tests.labeling import made, site

JSON = {"accept": "application/json"}


@pytest.fixture
def pages(new_store):
  return site.Site(new_store)


def test_a_ranking_is_submitted_in_stored_order(pages):
  made.add_items(pages.store, completions=3)
  ann = pages.client("Ann")
  work = site.get_work(ann)
  texts = work["completions"]
  assert sorted(texts) == ["Answer 0", "Answer 1", "Answer 2"]
  content = site.ranking(
    ranks=[1 + int(text[-1]) for text in texts],
    overall=[7 - int(text[-1]) for text in texts],
  )
  assert site.submit(ann, work, content).status_code == 200
  with pages.store.read() as connection:
    row = connection.execute(sa.select(schema.labels)).one()
  assert row.content["ranks"] == [1, 2, 3]
  assert row.content["overall"] == [7, 6, 5]


def test_the_form_of_the_page_submits_without_scripts(pages):
  made.add_items(pages.store, completions=2)
  ann = pages.client("Ann")
  path = ann.get("/tasks").headers["location"]
  page = ann.get(path).text
  fields = {
    "csrf": site.csrf_of(page),
    "revision": site.find('name="revision" value="([0-9]+)"', page),
    "rank-0": "2",
    "rank-1": "1",
    "overall-0": "3",
  }
  del ann.headers["x-csrf-token"]
  response = ann.post(f"{path}/submit", data=fields)
  assert response.status_code == 422
  assert 'id="problem-overall-1"' in response.text
  assert "Answer B: " in site.text_of(response.text)
  assert site.count_labels(pages.store) == 0
  response = ann.post(
    f"{path}/submit",
    data=fields | {"overall-1": "6", "flag-1-sexual_content": "on"},
  )
  assert response.status_code == 303
  assert site.count_labels(pages.store) == 1
  assert "Nothing left" in ann.get("/tasks").text


def test_fields_of_an_answer_name_it_for_a_screen_reader(pages):
  made.add_items(pages.store, completions=2)
  ann = pages.client("Ann")
  page = ann.get(ann.get("/tasks").headers["location"]).text
  legends = [
    " ".join(re.sub("<[^>]*>", "", text).split())
    for text in re.findall("<legend>(.*?)</legend>", page)
  ]
  for letter in "AB":
    assert f"Overall quality of answer {letter} 1 worst – 7 best" in legends
    assert f"True of answer {letter}" in legends
  # A mark's whole meaning is its description, and is also in a list.
  meaning = forms.FLAGS[0].label
  assert page.count(f'title="{meaning}"') == 2
  assert f"<dd>{meaning}</dd>" in page


def test_errors_name_the_displayed_answer(pages):
  made.add_items(pages.store, completions=5)
  ann = pages.client("Ann")
  work = site.get_work(ann)
  ranks = [1, 2, 3, 4, 5]
  ranks[3] = 9
  content = site.ranking(ranks)
  response = site.submit(ann, work, content)
  assert response.status_code == 422
  assert [e["field"] for e in response.json()["errors"]] == ["rank-3"]
  assert response.json()["errors"][0]["label"] == "Answer D: "


def test_a_draft_is_restored_on_another_device(pages):
  made.add_items(pages.store, completions=3)
  ann = pages.client("Ann")
  work = site.get_work(ann)
  path = f"/tasks/{work['assignment']}"
  content = site.ranking([2, None, None], notes="<b>half</b> done")
  response = site.post_json(ann, f"{path}/draft", content=content, revision=0)
  assert response.json() == {"revision": 1, "has_place": True}
  other = pages.log_in("Ann")
  again = other.get("/tasks?task=ranking", headers=JSON).json()
  assert again["assignment"] == work["assignment"]
  assert again["completions"] == work["completions"]
  assert again["draft"] == content
  page = other.get(path).text
  assert "&lt;b&gt;half&lt;/b&gt; done" in page
  first = page[page.index('name="rank-0"') :]
  assert "<option selected>2</option>" in first[: first.index("</select>")]


def test_a_stale_draft_is_refused_with_the_newer_one(pages):
  made.add_items(pages.store)
  ann = pages.client("Ann")
  path = f"/tasks/{site.get_work(ann)['assignment']}"
  new, old = site.ranking([1, 1, 1]), site.ranking([3, 3, 3])
  site.post_json(ann, f"{path}/draft", content=new, revision=0)
  response = site.post_json(ann, f"{path}/draft", content=old, revision=0)
  assert response.status_code == 409
  assert response.json()["draft"] == new
  assert response.json()["revision"] == 1
  response = site.post_json(ann, f"{path}/submit", content=old, revision=0)
  assert response.status_code == 409
  assert site.count_labels(pages.store) == 0


def test_active_seconds_are_at_most_the_time_that_passed(pages):
  made.add_items(pages.store)
  ann = pages.client("Ann")
  work = site.get_work(ann)
  path = f"/tasks/{work['assignment']}"
  revision = 0
  steps = ((20, 12.5), (10, 1e9), (0, -5), (0, None), (0, "x"), (0, "nan"))
  for passed, seconds in steps:
    pages.clock.now += passed
    response = site.post_json(
      ann, f"{path}/draft", content={}, revision=revision, seconds=seconds
    )
    revision = response.json()["revision"]
  site.submit(ann, {**work, "revision": revision}, site.ranking())
  with pages.store.read() as connection:
    seconds = connection.scalar(sa.select(schema.labels.c.seconds))
  assert seconds == pytest.approx(22.5)


def test_a_label_is_changed_and_taken_back_until_its_item_is_closed(pages):
  (item,) = made.add_items(pages.store)
  ann = pages.client("Ann")
  work = site.get_work(ann)
  path = f"/tasks/{work['assignment']}"
  site.submit(ann, work, site.ranking())
  again = ann.get(path, headers=JSON).json()
  assert again["state"] == "submitted"
  assert again["label"]["ranks"] == [1, 2, 3]
  assert "Save the change" in ann.get(path).text
  response = site.submit(ann, again, site.ranking([3, 2, 1]))
  assert response.json()["next"] == "/labels"
  assert ann.get(path, headers=JSON).json()["label"]["ranks"] == [3, 2, 1]
  assert ann.post(f"{path}/withdraw").status_code == 303
  back = ann.get(path, headers=JSON).json()
  assert back["state"] == "open" and back["draft"]["ranks"] == [3, 2, 1]
  site.submit(ann, back, site.ranking())
  labels.close_item(pages.store, item, pages.clock.now)
  page = ann.get(path).text
  assert "closed" in page and 'id="submit"' not in page
  last = ann.get(path, headers=JSON).json()
  response = site.submit(ann, last, site.ranking([2, 2, 1]))
  assert response.status_code == 409
  assert ann.post(f"{path}/withdraw").status_code == 409


def test_skipping_needs_a_reason_and_can_be_undone(pages):
  site.add_item(
    pages.store,
    "demonstration",
    {"turns": [{"role": "user", "content": "Why?"}]},
  )
  ann = pages.client("Ann")
  work = site.get_work(ann, "demonstration")
  path = f"/tasks/{work['assignment']}"
  assert ann.post(f"{path}/skip", data={"reason": " "}).status_code == 400
  assert ann.post(f"{path}/skip", data={"reason": "Dutch"}).status_code == 303
  assert site.get_work(ann, "demonstration")["assignment"] is None
  assert "Dutch" in ann.get(path).text
  assert ann.post(f"{path}/undo-skip").status_code == 303
  assert ann.get(path, headers=JSON).json()["state"] == "open"


def test_the_order_of_display_is_stable_for_a_labeler(pages):
  made.add_items(pages.store, completions=9, overlap=8)
  orders = set()
  for name in ("Ann", "Ben", "Cleo", "Dan"):
    client = pages.client(name)
    texts = site.get_work(client)["completions"]
    assert site.get_work(client)["completions"] == texts
    orders.add(tuple(texts))
  assert len(orders) > 1


def test_a_comparison_is_mirrored_for_the_stored_order(pages):
  made.add_items(pages.store, 30, task="comparison", completions=2)
  ann = pages.client("Ann")
  swapped = set()
  for _ in range(30):
    work = site.get_work(ann, "comparison")
    better = work["completions"].index("Answer 0")
    swapped.add(better)
    content = {"confidence": 2 if better == 0 else 8, "notes": ""}
    assert site.submit(ann, work, content).status_code == 200
  assert swapped == {0, 1}
  with pages.store.read() as connection:
    rows = connection.scalars(sa.select(schema.labels.c.content)).all()
  assert [row["confidence"] for row in rows] == [2] * 30


def test_demonstrations_count_tokens(new_store):
  pages = site.Site(new_store, count_tokens=lambda text: len(text.split()))
  site.add_item(new_store, "demonstration", {})
  ann = pages.client("Ann")
  work = site.get_work(ann, "demonstration")
  path = f"/tasks/{work['assignment']}"
  content = {"kind": "plain", "prompt": "a b", "answer": "a b c"}
  response = site.post_json(ann, f"{path}/draft", content=content, revision=0)
  assert response.json()["tokens"] == {"prompt": 2, "answer": 3}
  page = ann.get(path).text
  for kind in ("plain", "few_shot", "user_based"):
    assert f'value="{kind}"' in page
  assert page.index('id="intent"') < page.index('id="answer"')
  response = site.submit(ann, {**work, "revision": 1}, content)
  assert [e["field"] for e in response.json()["errors"]] == ["intent"]


def test_a_use_case_asks_for_a_user_based_prompt(pages):
  site.add_item(pages.store, "demonstration", {"use_case": "Plan <a> trip"})
  ann = pages.client("Ann")
  work = site.get_work(ann, "demonstration")
  page = ann.get(f"/tasks/{work['assignment']}").text
  assert "Use case: Plan &lt;a&gt; trip" in page
  assert 'value="user_based" checked' in page
  assert page.count(" checked") == 1


def test_the_label_has_the_version_of_the_instructions(pages):
  made.add_items(pages.store, 3)
  ann = pages.client("Ann")
  for version, sent in ((1, None), (2, "1"), (2, "99")):
    project.write_instructions(pages.store, f"v{version}", pages.clock.now)
    work = site.get_work(ann)
    response = site.post_json(
      ann,
      f"/tasks/{work['assignment']}/submit",
      content=site.ranking(),
      revision=0,
      instructions_version=sent,
    )
    assert response.status_code == 200
  with pages.store.read() as connection:
    versions = connection.scalars(
      sa.select(schema.labels.c.instructions_version).order_by("id")
    ).all()
  assert versions == [1, 1, 2]


@pytest.mark.parametrize(
  "kind, payload, content",
  [
    (
      "sensitive",
      {"texts": ["<i>t</i>", "u"]},
      {"sensitive": [True, False], "notes": ""},
    ),
    ("groups", {"groups": ["x", "y"]}, {"groups": ["y"], "other": ""}),
    (
      "ranking",
      {"turns": [], "completions": ["a", "b"]},
      site.ranking([1, 2]),
    ),
    (
      "demonstration",
      {"turns": [{"role": "user", "content": "q"}]},
      {"intent": "i", "answer": "a"},
    ),
  ],
)
def test_screening_pages(pages, kind, payload, content):
  site.add_item(
    pages.store, "screening", {"kind": kind, **payload}, overlap=None
  )
  cleo = pages.client("Cleo", "candidate")
  work = site.get_work(cleo, "screening")
  page = cleo.get(f"/tasks/{work['assignment']}")
  assert page.status_code == 200
  assert "<i>t</i>" not in page.text
  assert site.submit(cleo, work, content).status_code == 200
  assert cleo.get("/labels").status_code == 200


def test_the_source_of_an_answer_is_in_no_page(pages):
  (item,) = made.add_items(pages.store)
  ann = pages.client("Ann")
  owner = pages.client("Olga", "owner")
  work = site.get_work(ann)
  pages_of_work = [
    ann.get(f"/tasks/{work['assignment']}").text,
    str(work),
    owner.get(f"/items/{item}").text,
    owner.get("/items").text,
    owner.get(f"/adjudication/{item}").text,
  ]
  for page in pages_of_work:
    assert "stage 0" not in page


@pytest.mark.parametrize(
  "body",
  [
    {"content": [], "revision": 0},
    {"content": {}, "revision": "x"},
    {"content": {}},
    {"content": {}, "revision": True},
    {"content": {"notes": float("nan")}, "revision": 0},
    {"content": {"notes": "\ud800"}, "revision": 0},
    {"content": {"ranks": {"a": 1}, "flags": [1]}, "revision": 0},
  ],
)
def test_odd_bodies_are_refused_and_break_nothing(pages, body):
  made.add_items(pages.store)
  ann = pages.client("Ann")
  path = f"/tasks/{site.get_work(ann)['assignment']}"
  response = site.post_json(ann, f"{path}/submit", **body)
  assert response.status_code in (400, 422)
  site.post_json(ann, f"{path}/draft", **body)
  assert ann.get(path).status_code == 200
  assert ann.get("/labels").status_code == 200
