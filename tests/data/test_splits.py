"""Splits: by user, the same everywhere, no held-out prompt in train."""

import collections

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import curation
from instructgpt_jax.data.curation import splits
from instructgpt_jax.data.curation.drops import HELD_OUT
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)


def prompt(text, **kw):
  return Prompt(turns=(Turn("user", text),), **kw)


def demonstration(text, completion="c", **kw):
  return Demonstration(turns=(Turn("user", text),), completion=completion, **kw)


def ranking(text, **kw):
  return Ranking(
    turns=(Turn("user", text),), completions=("a", "b"), ranks=(1, 2), **kw
  )


def test_split_is_by_user_and_known_in_advance():
  data = configs.Data()
  by_user = collections.defaultdict(set)
  for u in range(300):
    for i in range(3):
      r = demonstration(f"{u} {i}", user_id=f"user {u}")
      by_user[u].add(splits.split_of(r, data))
  assert all(len(s) == 1 for s in by_user.values())
  counts = collections.Counter(next(iter(s)) for s in by_user.values())
  assert 20 <= counts["valid"] <= 42 and 20 <= counts["test"] <= 42
  # Any machine and any later version has to give these.
  places = [splits.split_of(prompt(f"q{i}"), data) for i in range(14)]
  assert places == KNOWN_PLACES


# From sha256sum: the first 16 digits as a share of 16^16.
KNOWN_PLACES = ["train"] * 14
KNOWN_PLACES[2], KNOWN_PLACES[12] = "valid", "test"


def test_same_prompt_same_side_in_every_file():
  data = configs.Data(valid_fraction=0.3, test_fraction=0.3)
  for i in range(50):
    first = Turn("user", f"Question {i}?")
    more = (first, Turn("assistant", "x"), Turn("user", "And?"))
    sides = {
      splits.split_of(r, data)
      for r in (
        Prompt(turns=(first,)),
        Prompt(turns=(Turn("user", f" question  {i}? "),)),
        Demonstration(turns=more, completion="c"),
        Ranking(
          turns=(Turn("system", "s"), first),
          completions=("a", "b"),
          ranks=(1, 2),
        ),
      )
    }
    assert len(sides) == 1


def test_explicit_split_is_used():
  data = configs.Data(valid_fraction=0.5, test_fraction=0.5)
  r = prompt("x", split="train", user_id="u")
  assert splits.split_of(r, data) == "train"
  parts = splits.Splitter([r], data).split([r])[0]
  assert {k: len(v) for k, v in parts.items()} == {
    "train": 1, "valid": 0, "test": 0,
  }  # fmt: skip


def texts(records):
  return {splits.normalised(r.turns[-1].text) for r in records}


KINDS = (demonstration, ranking, prompt)


@pytest.mark.parametrize("with_ids", range(3))
@pytest.mark.parametrize("how", ["ids", "split", "both"])
def test_a_held_out_prompt_is_in_no_training_record(with_ids, how):
  questions = [f"Question {i}?" for i in range(600)]
  sources = []
  for place, kind in enumerate(KINDS):
    fields = [{} for _ in questions]
    if place == with_ids:
      for i, field in enumerate(fields):
        if how != "split":
          field["user_id"] = f"u{i % 60}"
        if how != "ids" and i % 3 == 0:
          field["split"] = splits.SPLITS[i % 7 % 3]
    sources.append(
      [kind(q, **f) for q, f in zip(questions, fields, strict=True)]
    )
  parts = []
  for place, source in enumerate(sources):
    others = [s for i, s in enumerate(sources) if i != place]
    by_split, drops = curation.curate(source, configs.Data(), None, others)
    assert sum(map(len, by_split.values())) + drops.records == 600
    # Records without ids follow those with ids, so nothing has to be dropped.
    assert not drops
    parts.append(by_split)
  for held_out in ("test", "valid"):
    texts_held = set().union(*(texts(p[held_out]) for p in parts))
    assert len(texts_held) >= 20
    for part in parts:
      assert not texts_held & texts(part["train"])
  assert all(len(p["train"]) > 300 for p in parts)


def test_one_prompt_of_two_users_is_held_out_if_either_is():
  data = configs.Data(valid_fraction=0.2, test_fraction=0.2)
  records = [
    demonstration(f"Question {i}?", f"{u}", user_id=f"u{u}")
    for i in range(40)
    for u in (i, i + 1)
  ]
  parts, drops = curation.curate(records, data)
  assert drops[HELD_OUT] > 0 and drops.examples[HELD_OUT] in records
  assert sum(map(len, parts.values())) + drops[HELD_OUT] == len(records)
  assert not texts(parts["train"]) & texts(parts["test"] + parts["valid"])
  assert not texts(parts["valid"]) & texts(parts["test"])


def test_a_held_out_prompt_is_not_an_earlier_turn_of_a_training_record():
  first = Turn("user", "What is it?")
  more = (first, Turn("assistant", "A boat."), Turn("user", "Whose?"))
  records = [
    Demonstration(turns=more, completion="Mine.", split="train"),
    demonstration("Something else", split="train"),
  ]
  held_out = Prompt(
    turns=(Turn("system", "Be brief."), Turn("user", " what  IS it?")),
    split="test",
  )
  parts, drops = curation.curate(records, configs.Data(), None, [[held_out]])
  assert parts["train"] == records[1:] and drops == {HELD_OUT: 1}


def test_the_same_question_under_many_system_prompts_is_many_prompts():
  records = [
    Demonstration(
      turns=(Turn("system", f"Text {i}"), Turn("user", "Summarise the text.")),
      completion="x",
    )
    for i in range(200)
  ]
  parts, drops = curation.curate(records, configs.Data())
  assert not drops
  assert all(len(part) > 5 for part in parts.values())
  assert len(parts["train"]) > 120


def test_splits_do_not_depend_on_the_order_of_sources():
  records = [demonstration(f"q{i}", user_id=f"u{i % 20}") for i in range(100)]
  others = [prompt(f"Q{i}") for i in range(100)]
  data = configs.Data()
  one = splits.Splitter([*records, *others], data)
  two = splits.Splitter([*others[::-1], *records[::-1]], data)
  for record in [*records, *others]:
    assert one.split_of(record) == two.split_of(record)


def test_books_give_a_validation_split():
  book = "".join(
    f"Paragraph {i}. " + "word " * 60 + "\n\n" for i in range(3000)
  )
  parts = splits.split_documents([Document(text=book)], configs.Data())
  texts = [d.text for part in parts.values() for d in part]
  assert sorted("".join(texts)) == sorted(book), "nothing is lost"
  assert all(t.startswith("Paragraph") and t.endswith("\n\n") for t in texts)
  share = len(parts["valid"]) / len(texts)
  assert 0.02 < share < 0.25 and len(parts["train"]) > len(texts) / 2
  again = splits.split_documents([Document(text=book)], configs.Data())
  assert again == parts


def test_a_few_documents_still_give_both_sides():
  documents = [Document(text=f"text {i}") for i in range(2)]
  parts = splits.split_documents(documents, configs.Data())
  assert len(parts["train"]) == len(parts["valid"]) == 1
  whole = splits.split_documents(documents[:1], configs.Data())
  assert sum(map(len, whole.values())) == 1
  marked = [Document(text="x" * 90_000, split="test")]
  parts = splits.split_documents(marked, configs.Data())
  assert [len(d.text) for d in parts["test"]] == [90_000]


def conversation(*texts, **kw):
  roles = ("user", "assistant")
  turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
  return Demonstration(turns=turns, completion="c", **kw)


def curated(records, others=()):
  parts, drops = curation.curate(records, configs.Data(), None, others)
  held_out = texts(parts["valid"] + parts["test"])
  assert not held_out & {
    splits.normalised(t.text) for r in parts["train"] for t in r.turns
  }
  return [len(parts[name]) for name in splits.SPLITS], drops


@pytest.mark.parametrize("first", ["Hi!", "Hello", "."])
def test_one_first_turn_of_all_conversations_is_no_conversation(first):
  records = [
    conversation(first, "Hello.", f"Question {i}?") for i in range(300)
  ]
  sizes, drops = curated(records)
  assert not drops and sum(sizes) == 300
  assert min(sizes) >= 15 and sizes[0] >= 200
  (remark,) = drops.remarks
  assert "300 of 300" in remark and repr(first.lower()) in remark


def test_several_turns_that_all_conversations_share():
  turns = ("Hi!", "Hello.", "How are you?", "Well.")
  records = [conversation(*turns, f"Question {i}?") for i in range(200)]
  # The beginning alone cannot be held out: it is in every conversation.
  records += [conversation("Hi!", user_id="") for _ in range(1)]
  records += [conversation("Hi!", "Hello.", "How are you?")]
  sizes, drops = curated(records)
  assert not drops and sum(sizes) == 202 and min(sizes) >= 10


def test_conversations_of_several_greetings():
  records = [
    conversation(("Hi!", "Hello", "Hey")[i % 3], "Hello.", f"Question {i}?")
    for i in range(300)
  ]
  sizes, drops = curated(records)
  assert not drops and min(sizes) >= 15 and len(drops.remarks) == 3


def test_a_shared_first_turn_under_several_system_prompts():
  records = [
    Demonstration(
      turns=(Turn("system", f"Text {i % 5}"),)
      + conversation("Hi!", "Hello.", f"Question {i}?").turns,
      completion="c",
    )
    for i in range(200)
  ]
  sizes, drops = curated(records)
  assert not drops and min(sizes) >= 10
  (remark,) = drops.remarks
  assert "200 of 200" in remark


def test_later_turns_stay_with_the_turn_that_distinguishes_conversations():
  beginnings = [
    ("Hi!", f"Hello {i}.", f"Question {i % 60}?") for i in range(120)
  ]
  records = [conversation(*b) for b in beginnings]
  records += [conversation(*b, "Yes.", f"More {i}?")
              for i, b in enumerate(beginnings)]  # fmt: skip
  sizes, drops = curated(records)
  assert not drops and sum(sizes) == 240 and min(sizes) >= 8


def test_a_prompt_of_all_records_is_trained_on():
  for text in ("Hi!", "Write a poem.", "Name a river."):
    records = [demonstration(text, completion=f"poem {i}") for i in range(100)]
    sizes, drops = curated(records)
    assert sizes == [100, 0, 0] and "100 of 100" in drops.remarks[0]


def test_a_prompt_of_half_the_records_is_remarked_but_stays_whole():
  records = [demonstration("Hi!", completion=f"{i}") for i in range(60)]
  records += [demonstration(f"Question {i}?") for i in range(40)]
  data = configs.Data()
  parts, drops = curation.curate(records, data)
  assert "60 of 100" in drops.remarks[0]
  assert sum("hi!" in texts(part) for part in parts.values()) == 1


def test_shared_beginnings_count_in_every_source():
  records = [
    conversation("Hi!", "Hello.", f"Question {i}?") for i in range(100)
  ]
  others = [prompt("Hi!"), *(prompt(f"q{i}") for i in range(2000))]
  sizes, drops = curated(records, [others])
  alone, _ = curated(records)
  assert sizes == alone and not drops
  parts, _ = curation.curate(others, configs.Data(), None, [records])
  assert others[0] in parts["train"]


def test_groups_tell_conversations_apart():
  records = [conversation("Hi!", "Hello.", f"Question {i}?") for i in range(50)]
  splitter = splits.Splitter(records, configs.Data())
  assert len({splitter.group_of(r) for r in records}) == 50
  few = splits.Splitter(records[:5], configs.Data())
  assert {few.group_of(r) for r in records} == {"prompt:hi!"}
