"""Pages of owners and reviewers: people, items, quality, screening, export."""

import json
import re

import pytest

from instructgpt_jax.labeling import labels
from instructgpt_jax.labeling.people import invitations, users
from tests.labeling import made, site


@pytest.fixture
def pages(new_store):
  return site.Site(new_store)


def user_of(pages, name):
  return next(u for u in users.list_users(pages.store) if u.name == name)


def rank(client, ranks):
  """Ranks the next item: ranks[i] is the rank of `Answer i`."""
  work = site.get_work(client)
  shown = [ranks[int(text[-1])] for text in work["completions"]]
  response = site.submit(client, work, site.ranking(shown))
  assert response.status_code == 200


def test_the_dashboard_shows_the_agreement_computed_by_hand(pages):
  made.add_items(pages.store, 2, overlap=3)
  # Item 1: Ann and Ben order 2 of 3 pairs alike. Item 2: one pair is tied by
  # Ben, both others are alike.
  for name, rankings in (
    ("Ann", ([1, 2, 3], [1, 2, 3])),
    ("Ben", ([1, 3, 2], [1, 2, 2])),
  ):
    client = pages.client(name)
    for ranks in rankings:
      rank(client, ranks)
  owner = pages.client("Olga", "owner")
  text = site.text_of(owner.get("/dashboard").text)
  assert "Agreement 80.0" in text  # 4 of 5 pairs
  assert "5 pairs, 1 tie left out" in text
  assert "Labels 4" in text
  assert "Ann and Ben 80 % 0.65" in text
  rows = site.text_of(owner.get("/adjudication").text)
  assert "33 %" in rows


def test_a_reviewer_decides_an_item(pages):
  (item,) = made.add_items(pages.store, completions=3, overlap=2)
  rank(pages.client("Ann"), [1, 2, 3])
  rank(pages.client("Ben"), [3, 2, 1])
  rita = pages.client("Rita", "reviewer")
  page = rita.get(f"/adjudication/{item}").text
  texts = re.findall(r'<div class="text-block">(Answer \d)</div>', page)
  assert sorted(texts) == ["Answer 0", "Answer 1", "Answer 2"]
  fields = {"csrf": site.csrf_of(page)}
  response = rita.post(f"/adjudication/{item}", data=fields)
  assert response.status_code == 422
  for i, text in enumerate(texts):
    fields[f"rank-{i}"] = str(1 + int(text[-1]))
    fields[f"overall-{i}"] = "4"
  response = rita.post(f"/adjudication/{item}", data=fields)
  assert response.status_code == 303
  final = labels.get_adjudication(pages.store, item)
  assert final is not None and final.content["ranks"] == [1, 2, 3]
  assert "final" in site.text_of(rita.get("/adjudication").text)
  assert "<option selected>1</option>" in rita.get(f"/adjudication/{item}").text
  # A page from before that label does not replace it unasked.
  response = rita.post(f"/adjudication/{item}", data=fields | {"rank-0": "3"})
  assert response.status_code == 409 and "saved since" in response.text
  assert labels.get_adjudication(pages.store, item) == final
  number = site.find('name="decided_at" value="([0-9.]+)"', response.text)
  response = rita.post(
    f"/adjudication/{item}", data=fields | {"decided_at": number}
  )
  assert response.status_code == 303


def test_reviewers_do_not_see_labels_of_held_out_labelers(pages):
  (item,) = made.add_items(pages.store, completions=3, overlap=2)
  (gold,) = made.add_items(pages.store, overlap=None, gold={"ranks": [1, 2, 3]})
  rank(pages.client("Ann"), [1, 2, 3])
  for name, ranks in (("Uwe", [3, 2, 1]), ("Zoe", [1, 3, 2])):
    rank(pages.client(name, held_out=True), ranks)
  rita = pages.client("Rita", "reviewer")
  page = site.text_of(rita.get(f"/adjudication/{item}").text)
  assert "Ann" in page and "Uwe" not in page and "Zoe" not in page
  assert "No item has two labels" in rita.get("/adjudication").text
  page = rita.get("/dashboard").text
  assert f"/adjudication/{item}" not in page
  assert "0 ties left out, of training labelers" in site.text_of(page)
  rank(pages.client("Ben"), [1, 3, 2])
  rows = site.text_of(rita.get("/adjudication").text)
  assert "33 %" in rows and "1 item has two labels" in rows
  owner = pages.client("Olga", "owner")
  assert "Final label" in owner.get(f"/items/{item}").text
  assert "Final label" not in owner.get(f"/items/{gold}").text


def test_items_are_closed_and_reopened(pages):
  made.add_items(pages.store, 2)
  owner = pages.client("Olga", "owner")
  ann = pages.client("Ann")
  rank(ann, [1, 2, 3])
  assert owner.post("/items/close-full").status_code == 303
  closed = owner.get("/items?state=closed").text
  assert 'href="/items/1"' in closed and 'href="/items/2"' not in closed
  row = owner.post("/items/1/reopen", headers={"hx-request": "true"})
  assert row.status_code == 200 and row.text.strip().startswith("<tr>")
  assert "Close" in row.text
  assert owner.post("/items/2/close").headers["location"] == "/items/2"
  assert site.get_work(ann)["assignment"] is None
  assert owner.get("/items?after=x&task=none&state=odd").status_code == 200


def test_the_owner_sees_labels_by_group_and_why_items_were_skipped(pages):
  made.add_items(pages.store, 1, overlap=2)
  owner = pages.client("Olga", "owner")
  rank(pages.client("Ann"), [1, 2, 3])
  rank(pages.client("Hal", held_out=True), [1, 2, 3])
  ben = pages.client("Ben")
  number = site.get_work(ben)["assignment"]
  ben.post(f"/tasks/{number}/skip", data={"reason": "<i>In Dutch</i>"})
  assert "1 of 2, 1 held out" in site.text_of(owner.get("/items").text)
  page = owner.get("/items/1").text
  assert "Skipped Ben" in site.text_of(page)
  assert "&lt;i&gt;In Dutch" in page


def test_people_are_invited_and_changed(pages):
  owner = pages.client("Olga", "owner")
  page = owner.post(
    "/people/invite", data={"kind": "held-out labeler", "note": "Eve"}
  ).text
  link = r'value="http://127.0.0.1:8765/invitation#([\w-]+)"'
  token = site.find(link, page)
  assert token not in owner.get("/people").text
  eve = invitations.accept_invitation(
    pages.store, token, "Eve", "a long password", made.NOW
  )
  assert eve.role == "labeler" and eve.held_out
  path = f"/people/{eve.id}"
  assert owner.post(path, data={"kind": "reviewer"}).status_code == 303
  assert user_of(pages, "Eve").role == "reviewer"
  assert owner.post(path, data={"kind": "king"}).status_code == 400
  owner.post(path, data={"active": "no"})
  assert not user_of(pages, "Eve").active
  olga = f"/people/{user_of(pages, 'Olga').id}"
  response = owner.post(olga, data={"kind": "labeler"})
  assert response.status_code == 409 and "owner" in response.text
  assert user_of(pages, "Olga").role == "owner"
  page = owner.post(f"{path}/reset").text
  assert "/invitation#" in page


def test_screening_shows_candidates_beside_the_cuts(pages):
  turns = [{"role": "user", "content": "q"}]
  for payload, gold in (
    (
      {"kind": "sensitive", "texts": ["a", "b", "c", "d"]},
      {"sensitive": [True, False, False, False]},
    ),
    (
      {"kind": "ranking", "turns": turns, "completions": ["0", "1", "2"]},
      {"ranks": [1, 2, 3]},
    ),
    ({"kind": "demonstration", "turns": turns}, None),
    ({"kind": "groups", "groups": ["x", "y"]}, None),
  ):
    site.add_item(pages.store, "screening", payload, overlap=None, gold=gold)
  carl = pages.client("Carl", "candidate")
  for _ in range(4):
    work = site.get_work(carl, "screening")
    content = {
      "sensitive": {"sensitive": [True, True, False, False]},
      "groups": {"groups": ["y"]},
      "demonstration": {"intent": "i", "answer": "a"},
      "ranking": site.ranking(
        [1 + int(text) for text in work["completions"]]
        if work["kind"] == "ranking"
        else []
      ),
    }[work["kind"]]
    assert site.submit(carl, work, content).status_code == 200
    if work["kind"] == "demonstration":
      number = work["assignment"]
  rita = pages.client("Rita", "reviewer")
  owner = pages.client("Olga", "owner")
  text = site.text_of(owner.get("/screening").text)
  assert "75 %" in text and "100 %" in text and "1 to rate" in text
  path = f"/screening/labels/{number}"
  assert rita.post(path, data={"rating": "8"}).status_code == 400
  carl_id = user_of(pages, "Carl").id
  for client, rating in ((rita, "7"), (owner, "5"), (rita, "6")):
    response = client.post(path, data={"rating": rating})
    assert response.headers["location"] == f"/screening/{carl_id}"
  assert "5.5 of 7" in site.text_of(owner.get("/screening").text)
  # A demonstration that changes after its rating has to be rated again.
  pages.clock.now += 10
  work = carl.get(
    f"/tasks/{number}", headers={"accept": "application/json"}
  ).json()
  site.submit(carl, work, {"intent": "i", "answer": "b"})
  assert "1 to rate" in site.text_of(owner.get("/screening").text)
  decision = f"/screening/{carl_id}/decision"
  fields = {"decision": "held out", "note": "good"}
  assert rita.post(decision, data=fields).status_code == 403
  assert owner.post(decision, data=fields).status_code == 303
  user = user_of(pages, "Carl")
  assert user.role == "labeler" and user.held_out
  assert "Carl" in owner.get("/screening").text
  rita_id = user_of(pages, "Rita").id
  response = owner.post(f"/screening/{rita_id}/decision", data=fields)
  assert response.status_code == 404
  assert user_of(pages, "Rita").role == "reviewer"


def test_win_rates(pages):
  made.add_items(pages.store, 4, task="comparison", completions=2)
  ann = pages.client("Ann")
  for i in range(4):
    work = site.get_work(ann, "comparison")
    first = work["completions"][0] == "Answer 0"
    wins = i != 3
    content = {"confidence": 1 if wins == first else 9}
    site.submit(ann, work, content)
  text = site.text_of(pages.client("Olga", "owner").get("/evaluation").text)
  assert "stage 0 against" in text
  assert "stage 1 75.0 %" in text and "3 0 1 4" in text
  # Held-out labelers judge the models in rows of their own.
  hal = pages.client("Hal", held_out=True)
  work = site.get_work(hal, "comparison")
  first = work["completions"][0] == "Answer 0"
  site.submit(hal, work, {"confidence": 9 if first else 1})
  text = site.text_of(pages.log_in("Olga").get("/evaluation").text)
  assert "stage 1 75.0 %" in text and "3 0 1 4" in text
  assert "stage 0, judged by held-out labelers" in text
  assert "0 0 1 1" in text


def test_exports_have_what_was_labeled(pages):
  made.add_items(pages.store, 2)
  owner = pages.client("Olga", "owner")
  rank(pages.client("Ann"), [1, 2, 3])
  rank(pages.client("Hal", held_out=True), [3, 2, 1])
  page = owner.get("/export").text
  assert "held_out_rankings" in page and "not for training" in page
  rows = {}
  for name in ("rankings", "held_out_rankings"):
    response = owner.get(f"/export/{name}.jsonl")
    assert response.status_code == 200
    assert f'filename="{name}.jsonl"' in response.headers["content-disposition"]
    assert owner.get(f"/export/{name}.jsonl").content == response.content
    (rows[name],) = map(json.loads, response.text.splitlines())
  assert rows["rankings"]["ranks"] == [1, 2, 3]
  assert rows["held_out_rankings"]["ranks"] == [3, 2, 1]
  assert owner.get("/export/rankings.parquet").content[:4] == b"PAR1"
  for name in ("rankings.csv", "other.jsonl", "..%2Fx.jsonl"):
    assert owner.get(f"/export/{name}").status_code == 404
  ann = pages.log_in("Ann")
  assert ann.get("/export/rankings.jsonl").status_code == 403


def test_instructions_have_versions(pages):
  owner = pages.client("Olga", "owner")
  for number in (1, 2):
    response = owner.post(
      "/instructions", data={"markdown": f"# Version {number}\r\n\r\ntext"}
    )
    assert response.status_code == 303
  page = owner.get("/instructions").text
  assert "<h2>Version 2</h2>" in page and "version 2," in page
  assert owner.post("/instructions", data={"markdown": " "}).status_code == 422
  preview = owner.post("/instructions/preview", data={"markdown": "*a*"}).text
  assert preview == "<p><em>a</em></p>\n"
