"""Curation: what is dropped, what stays, and where it goes."""

import collections

import pytest

from instructgpt_jax import config
from instructgpt_jax.data import curation
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.errors import UserError


def prompt(text, **kw):
  return Prompt(turns=(Turn("user", text),), **kw)


def demonstration(text, completion="c", **kw):
  return Demonstration(turns=(Turn("user", text),), completion=completion, **kw)


def texts(found):
  return [r.turns[0].text for r in found]


class Words(Tokenizer):
  def __init__(self):
    super().__init__(3, pad_id=0, eos_id=1)

  def encode_batch(self, texts):
    return [[2] * len(t.split()) for t in texts]


def test_prompts_with_a_common_prefix_are_one():
  data = config.Data(common_prefix_chars=30)
  start = "translate this text for me: "
  found, counts = curation.deduplicate(
    [
      prompt(start + "one thing"),
      prompt(start.upper() + " ONE   other"),
      prompt(start),
      prompt("short"),
      prompt("short one"),
      prompt(" Short "),
    ],
    data,
  )
  assert texts(found) == [start + "one thing", start, "short", "short one"]
  assert counts == {curation.PREFIX: 1, curation.DUPLICATE: 1}


def test_no_prefix_rule():
  data = config.Data(common_prefix_chars=0)
  long = "word " * 100
  found, _ = curation.deduplicate(
    [prompt(long + "a"), prompt(long + "b")], data
  )
  assert len(found) == 2
  found, _ = curation.deduplicate([prompt(long), prompt(long)], data)
  assert len(found) == 1


def test_several_labelers_on_one_prompt_stay():
  data = config.Data()
  found, counts = curation.deduplicate(
    [
      demonstration("p", "a"),
      demonstration("p", "b"),
      demonstration("p", "a"),
    ],
    data,
  )
  assert [r.completion for r in found] == ["a", "b"]
  assert counts == {curation.DUPLICATE: 1}
  ranking = [
    Ranking(
      turns=(Turn("user", "p"),),
      completions=("a", "b"),
      ranks=(1, 2),
      labeler_id=labeler,
    )
    for labeler in ("x", "y", "x")
  ]
  assert len(curation.deduplicate(ranking, data)[0]) == 2


def test_prompts_per_user():
  data = config.Data(max_prompts_per_user=2)
  found, counts = curation.limit_users(
    [
      demonstration("a", "1", user_id="u"),
      demonstration("b", "1", user_id="u"),
      demonstration("a", "2", user_id="u"),
      demonstration("c", "1", user_id="u"),
      demonstration("c", "1", user_id="v"),
      *(demonstration(f"n{i}") for i in range(5)),
    ],
    data,
  )
  assert texts(found)[:4] == ["a", "b", "a", "c"] and len(found) == 9
  assert found[3].user_id == "v"
  assert counts == {curation.USER_LIMIT: 1}


def test_the_paper_limit_is_200():
  many = [demonstration(f"p{i}", user_id="u") for i in range(250)]
  assert len(curation.limit_users(many, config.Data())[0]) == 200


def test_long_prompts_are_dropped_and_counted():
  # The tags are two more words.
  data = config.Data(max_prompt_tokens=5)
  found, counts = curation.drop_long(
    [prompt("one two three"), prompt("one two three four")], Words(), data
  )
  assert texts(found) == ["one two three"]
  assert counts == {curation.LONG: 1}


def test_split_is_by_user_and_known_in_advance():
  data = config.Data()
  by_user = collections.defaultdict(set)
  for u in range(300):
    for i in range(3):
      r = demonstration(f"{u} {i}", user_id=f"user {u}")
      by_user[u].add(curation.split_of(r, data))
  assert all(len(s) == 1 for s in by_user.values())
  counts = collections.Counter(next(iter(s)) for s in by_user.values())
  assert 20 <= counts["valid"] <= 42 and 20 <= counts["test"] <= 42
  # Any machine and any later version has to give these.
  places = [curation.split_of(prompt(f"q{i}"), data) for i in range(14)]
  assert places == KNOWN_PLACES


# From sha256sum: the first 16 digits as a share of 16^16.
KNOWN_PLACES = ["train"] * 14
KNOWN_PLACES[2], KNOWN_PLACES[12] = "valid", "test"


def test_same_prompt_same_side_in_every_file():
  data = config.Data(valid_fraction=0.3, test_fraction=0.3)
  for i in range(50):
    first = Turn("user", f"Question {i}?")
    more = (first, Turn("assistant", "x"), Turn("user", "And?"))
    sides = {
      curation.split_of(r, data)
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


def test_explicit_split_stands():
  data = config.Data(valid_fraction=0.5, test_fraction=0.5)
  r = prompt("x", split="train", user_id="u")
  assert curation.split_of(r, data) == "train"
  splits = curation.split_records([r], data)
  assert {k: len(v) for k, v in splits.items()} == {
    "train": 1, "valid": 0, "test": 0,
  }  # fmt: skip


PERSONAL = {
  "e-mail address": [
    "write to jane.doe+x@mail.example.co.uk now",
    "JANE@EXAMPLE.COM",
  ],
  "phone number": [
    "call (212) 555-0187",
    "call 212-555-0187.",
    "call 212.555.0187",
    "+44 20 7946 0958",
    "+1 917-555-6321",
    "0049 30 901820",
    "ring 07700 900123",
    "ring 020 7946 0958",
    "tel: 1-800-555-0199",
  ],
  "card number": [
    "card 4111 1111 1111 1111",
    "card 5500-0000-0000-0004",
    "4012888888881881",
    "3782 822463 10005",
  ],
  "id number": [
    "SSN 078-05-1120",
    "IBAN GB82 WEST 1234 5698 7654 32",
    "DE89370400440532013000",
    "my passport number is X1234567",
    "Driver's license: D1234567",
  ],
  "user name": ["ask @jane_doe about it", "(@janedoe)", "by @janedoe."],
  "page of a user": [
    "https://twitter.com/janedoe",
    "see github.com/janedoe/thing",
    "www.linkedin.com/in/jane-doe-123",
    "https://www.facebook.com/jane.doe.9",
    "reddit.com/u/janedoe",
    "http://example.org/~jane/index.html",
    "https://example.com/users/jane",
    "ftp://jane:secret@host/",
  ],
  "network address": ["from 203.0.113.77:8080", "IP: 81.2.69.142"],
}
HARMLESS = [
  "Add 2,000,000 and 400,000 to get 2,400,000.",
  "In 1914-1918, about 20 000 000 people",
  "2000000-400000=1600000",
  "Dates: 2020-01-31, 31.01.2020, 12/25/1937.",
  "Order 4111 1111 1111 1112 has no valid check digit",
  "1234567890123456 is a number",
  "0000 0000 0000 0000",
  "print(f'{x:.3f}') # 3.14159265358979",
  "Linux 2.6.8.1 and version 10.0.1",
  "127.0.0.1 and 192.168.0.1",
  "@property\ndef x(self): ...",
  "text\n@decorated\nclass X: ...",
  "@media screen { }",
  "it costs 5 @ 3 dollars",
  "https://www.vox.com/2020/3/18/21229268/story",
  "https://github.com/features",
  "https://en.wikipedia.org/wiki/User_interface",
  "the license plate, the passport office, 12 people",
  "GB82 WEST 1234 5698 7654 33 has a wrong check sum",
  "A ratio of 100:200:3000",
  "ISBN 978-3-16-148410-0",
  "phone 12345",
]


@pytest.mark.parametrize(
  "kind, text", [(k, t) for k, found in PERSONAL.items() for t in found]
)
def test_personal_information(kind, text):
  assert curation.personal_information(text) == kind
  assert curation.personal_information(f"Well,\n{text}\nand so on") == kind


@pytest.mark.parametrize("text", HARMLESS)
def test_no_personal_information(text):
  assert curation.personal_information(text) == ""


def test_personal_information_anywhere_in_a_record():
  bad = "jane@example.com"
  records = [
    prompt(bad),
    Prompt(turns=(Turn("system", bad), Turn("user", "x"))),
    demonstration("x", bad),
    Ranking(turns=(Turn("user", "x"),), completions=("a", bad), ranks=(1, 2)),
  ]
  for record in records:
    kept, counts = curation.drop_personal([record])
    assert not kept
    assert counts == {"records with personal information: e-mail address": 1}


def test_filter_is_for_the_train_split_and_can_be_off():
  records = [
    demonstration("a jane@example.com", split="train"),
    demonstration("b jane@example.com", split="valid"),
    demonstration("c jane@example.com", split="test"),
  ]
  splits, counts = curation.curate(records, config.Data())
  assert {k: len(v) for k, v in splits.items()} == {
    "train": 0, "valid": 1, "test": 1,
  }  # fmt: skip
  assert sum(counts.values()) == 1
  splits, counts = curation.curate(records, config.Data(filter_personal=False))
  assert len(splits["train"]) == 1 and not counts


def test_curation_accounts_for_every_record():
  data = config.Data(max_prompts_per_user=3, max_prompt_tokens=8)
  records = [
    demonstration(f"q {i % 40} " + "w " * (i % 8), user_id=f"u{i % 10}")
    for i in range(200)
  ]
  splits, counts = curation.curate(records, data, Words())
  kept = sum(map(len, splits.values()))
  assert kept + sum(counts.values()) == 200 and kept > 10
  assert set(counts) == {
    curation.DUPLICATE, curation.USER_LIMIT, curation.LONG,
  }  # fmt: skip


def test_nothing_left_says_where_it_went():
  data = config.Data(max_prompt_tokens=1)
  splits, counts = curation.curate([prompt("a b c")], data, Words())
  with pytest.raises(UserError) as e:
    curation.require(splits, counts, "data.prompts")
  assert e.value.field == "data.prompts"
  assert "1 prompts over the token limit" in str(e.value)
  assert "max_prompt_tokens" in e.value.fix
  splits, counts = curation.curate([prompt("a", split="train")], data)
  assert curation.require(splits, counts, "data.prompts") == splits["train"]


def test_books_give_a_validation_split():
  book = "".join(
    f"Paragraph {i}. " + "word " * 60 + "\n\n" for i in range(3000)
  )
  splits = curation.split_documents([Document(text=book)], config.Data())
  parts = [d.text for name in splits for d in splits[name]]
  assert sorted("".join(parts)) == sorted(book), "nothing is lost"
  assert all(p.startswith("Paragraph") and p.endswith("\n\n") for p in parts)
  share = len(splits["valid"]) / len(parts)
  assert 0.02 < share < 0.25 and len(splits["train"]) > len(parts) / 2
  again = curation.split_documents([Document(text=book)], config.Data())
  assert again == splits


def test_a_few_documents_still_give_both_sides():
  documents = [Document(text=f"text {i}") for i in range(2)]
  splits = curation.split_documents(documents, config.Data())
  assert len(splits["train"]) == len(splits["valid"]) == 1
  whole = curation.split_documents(documents[:1], config.Data())
  assert sum(map(len, whole.values())) == 1
  marked = [Document(text="x" * 90_000, split="test")]
  splits = curation.split_documents(marked, config.Data())
  assert [len(d.text) for d in splits["test"]] == [90_000]
