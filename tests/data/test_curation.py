"""Curation: dropped records, and splits of the others."""

import dataclasses

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import curation
from instructgpt_jax.data.curation import (
  dedupe,
  drops,
  personal,
  token_limits,
  users,
)
from instructgpt_jax.data.records import Demonstration, Prompt, Ranking, Turn
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from tests.data import tokenizer_folders as folders


def prompt(text, **kw):
  return Prompt(turns=(Turn("user", text),), **kw)


def demonstration(text, completion="c", **kw):
  return Demonstration(turns=(Turn("user", text),), completion=completion, **kw)


def texts(actual):
  return [r.turns[0].text for r in actual]


class Words(Tokenizer):
  def __init__(self):
    super().__init__(3, pad_id=0, eos_id=1)

  def encode_batch(self, texts):
    return [[2] * len(t.split()) for t in texts]


def test_prompts_with_a_common_prefix_are_one():
  data = configs.Data(common_prefix_chars=30)
  start = "translate this text for me: "
  actual, counts = dedupe.deduplicate(
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
  assert texts(actual) == [start + "one thing", start, "short", "short one"]
  assert counts == {drops.PREFIX: 1, drops.REPEATED: 1}


def test_no_prefix_rule():
  data = configs.Data(common_prefix_chars=None)
  long = "word " * 100
  actual, _ = dedupe.deduplicate([prompt(long + "a"), prompt(long + "b")], data)
  assert len(actual) == 2
  actual, _ = dedupe.deduplicate([prompt(long), prompt(long)], data)
  assert len(actual) == 1


SYSTEM = "You sell bicycles and spare parts, and answer briefly. " * 5
TEMPLATE = "Use the context to answer the question at the end. " * 5


def test_records_that_share_a_beginning_stay():
  data = configs.Data()
  turns = [
    (Turn("system", SYSTEM), Turn("user", TEMPLATE + f"Question {i}?"))
    for i in range(30)
  ]
  demonstrations = [Demonstration(turns=t, completion="x") for t in turns]
  rankings = [
    Ranking(turns=t, completions=("a", "b"), ranks=(1, 2)) for t in turns
  ]
  for records in (demonstrations, rankings):
    stay, counts = dedupe.deduplicate(records, data)
    assert stay == records and not counts


@pytest.mark.parametrize("shared", ["system", "template", "both"])
def test_prompts_with_a_template_are_compared_from_where_they_differ(shared):
  system = SYSTEM if shared != "template" else ""
  template = TEMPLATE if shared != "system" else ""
  questions = [f"What is number {i}?" for i in range(200)]
  long = "A long question that is asked twice. " * 10
  questions += [long + "Thanks.", long + "Thank you."]
  records = [
    Prompt(turns=(Turn("system", system), Turn("user", template + q)))
    for q in questions
  ]
  stay, counts = dedupe.deduplicate(records, configs.Data())
  assert stay == records[:-1]
  assert counts == {drops.PREFIX: 1}
  assert counts.templates == (202 if template else 0)


def test_templates_within_templates():
  records = [
    prompt(f"{'a' * 250}{'bc'[kind] * 250}{i:05}")
    for kind in range(2)
    for i in range(50)
  ]
  for chars in (1, 7, 200):
    data = configs.Data(common_prefix_chars=chars)
    stay, _ = dedupe.deduplicate(records, data)
    assert len({r.turns for r in stay} & {r.turns for r in records[:50]}) > 9
    if chars == 200:
      assert stay == records


def test_few_prompts_with_a_long_prefix_are_one():
  records = [prompt(TEMPLATE + f"Question {i}?") for i in range(9)]
  stay, counts = dedupe.deduplicate(records, configs.Data())
  assert stay == records[:1] and counts == {drops.PREFIX: 8}
  assert counts.examples[drops.PREFIX] == records[1]


def test_the_same_last_turn_after_other_turns_is_another_prompt():
  last = Turn("user", "go on " * 60)
  records = [
    Prompt(turns=(Turn("user", q), Turn("assistant", a), last))
    for q, a in (("Hi", "Yes?"), ("Hi", "No?"), ("Hello", "Yes?"))
  ]
  records += [Prompt(turns=(Turn("system", "Be brief."), *records[0].turns))]
  repeated = [dataclasses.replace(records[0], origin="x:9", user_id="u")]
  stay, counts = dedupe.deduplicate(records + repeated, configs.Data())
  assert stay == records and counts == {drops.REPEATED: 1}
  assert counts.examples[drops.REPEATED].origin == "x:9"


def test_whole_records_are_compared_as_they_are():
  records = [
    demonstration("Print foo", "foo"),
    demonstration("Print Foo", "foo"),
    demonstration("Print foo", "Foo"),
    demonstration("Print foo", "foo ", labeler_id="l"),
    demonstration("Print foo", "foo", user_id="u"),
    demonstration("Print foo", "foo", split="test"),
  ]
  again = [
    dataclasses.replace(r, origin=f"x:{i}") for i, r in enumerate(records)
  ]
  stay, counts = dedupe.deduplicate(records + again, configs.Data())
  assert stay == records and counts == {drops.DUPLICATE: 6}


def test_several_labelers_on_one_prompt_stay():
  data = configs.Data()
  actual, counts = dedupe.deduplicate(
    [
      demonstration("p", "a"),
      demonstration("p", "b"),
      demonstration("p", "a"),
    ],
    data,
  )
  assert [r.completion for r in actual] == ["a", "b"]
  assert counts == {drops.DUPLICATE: 1}
  ranking = [
    Ranking(
      turns=(Turn("user", "p"),),
      completions=("a", "b"),
      ranks=(1, 2),
      labeler_id=labeler,
    )
    for labeler in ("x", "y", "x")
  ]
  assert len(dedupe.deduplicate(ranking, data)[0]) == 2


def test_prompts_per_user():
  data = configs.Data(max_prompts_per_user=2)
  actual, counts = users.limit_users(
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
  assert texts(actual)[:4] == ["a", "b", "a", "c"] and len(actual) == 9
  assert actual[3].user_id == "v"
  assert counts == {drops.USER_LIMIT: 1}


def test_the_paper_limit_is_200():
  many = [demonstration(f"p{i}", user_id="u") for i in range(250)]
  assert len(users.limit_users(many, configs.Data())[0]) == 200


@pytest.mark.parametrize("user", ["anonymous", "0", "u7", "-1", "None"])
def test_an_id_of_nearly_all_records_is_no_user_id(user):
  records = [demonstration(f"p{i}", user_id=user) for i in range(290)]
  records += [demonstration(f"q{i}", user_id=f"other {i}") for i in range(10)]
  splits, counts = curation.curate(records, configs.Data())
  assert not counts and sum(map(len, splits.values())) == 300
  assert all(len(part) >= 10 for part in splits.values())
  (remark,) = counts.remarks
  assert repr(user) in remark and "290 of 300" in remark


@pytest.mark.parametrize("user", ["anonymous", "UNKNOWN", "n/a", " "])
def test_placeholders_are_no_users(user):
  records = [demonstration(f"p{i}", user_id=user) for i in range(40)]
  records += [demonstration(f"q{i}", user_id=f"u{i % 9}") for i in range(160)]
  splits, counts = curation.curate(records, configs.Data())
  (remark,) = counts.remarks
  assert "40 of 200" in remark
  sides = {name: {r.user_id for r in part} for name, part in splits.items()}
  assert sum("" in users for users in sides.values()) == 3


def test_a_user_of_half_the_records_is_remarked_but_stays_whole():
  records = [demonstration(f"p{i}", user_id="u") for i in range(60)]
  records += [demonstration(f"q{i}", user_id=f"u{i}") for i in range(40)]
  splits, counts = curation.curate(records, configs.Data())
  assert "60 of 100" in counts.remarks[0]
  sides = [
    n for n, part in splits.items() if any(r.user_id == "u" for r in part)
  ]
  assert len(sides) == 1


def test_a_limit_that_is_set_holds_for_constant_ids():
  records = [demonstration(f"p{i}", user_id="u7") for i in range(30)]
  data = configs.Data(max_prompts_per_user=20, explicit="max_prompts_per_user")
  splits, counts = curation.curate(records, data)
  assert counts == {drops.USER_LIMIT: 10}
  assert sum(map(len, splits.values())) == 20
  splits, counts = curation.curate(
    records, configs.Data(max_prompts_per_user=20)
  )
  assert not counts and sum(map(len, splits.values())) == 30


class Letters(Tokenizer):
  """Tokenizer with one token per letter."""

  def __init__(self):
    super().__init__(256, pad_id=0, eos_id=1)

  def encode_batch(self, texts):
    return [[ord(c) for c in t] for t in texts]


def test_cut_replies_are_counted():
  # A space stands before a reply, and end-of-text after it.
  data = configs.Data(max_response_tokens=6)
  records = [
    demonstration("a", "four"),
    demonstration("b", "fiver", origin="f:2"),
    demonstration("c", "sixers"),
  ]
  stay, counts = token_limits.drop_cut(records, Letters(), data)
  assert stay == records and not counts
  assert (counts.cut, counts.replies) == (2, 3)
  assert counts.cut_example == records[1]


def ranking(completions, ranks, **kw):
  return Ranking(
    turns=(Turn("user", "p"),), completions=completions, ranks=ranks, **kw
  )


@pytest.mark.parametrize(
  "completions, ranks, stay",
  [
    (("same one", "same two"), (1, 2), None),
    (("same one", "same two", "same 3"), (1, 2, 3), None),
    (("same one", "same two", "other"), (2, 1, 3), ((1, 2), (1, 3))),
    (("other", "same one", "same two"), (2, 3, 1), ((0, 2), (2, 1))),
    (("same one", "same two", "other"), (1, 2, 1), None),
    (
      ("same one", "no", "same two", "yes"),
      (1, 2, 3, 4),
      ((0, 1, 3), (1, 2, 4)),
    ),
    (("same one", "different"), (1, 2), ((0, 1), (1, 2))),
    (("same one", "same one", "other"), (1, 1, 2), ((0, 1, 2), (1, 1, 2))),
    (("a", "b"), (1, 2), ((0, 1), (1, 2))),
  ],
)
def test_completions_that_the_cut_makes_equal(completions, ranks, stay):
  data = configs.Data(max_response_tokens=6)
  record = ranking(completions, ranks)
  rankings, counts = token_limits.drop_cut([record], Letters(), data)
  if stay is None:
    assert not rankings and counts == {drops.CUT_EQUAL: 1}
    assert counts.records == 1
    return
  rows, left = stay
  assert rankings[0].completions == tuple(completions[i] for i in rows)
  assert rankings[0].ranks == left
  lost = len(completions) - len(rows)
  assert counts == ({drops.CUT_COMPLETIONS: lost} if lost else {})
  assert counts.records == 0


def test_the_limit_of_replies_is_applied_by_curation():
  data = configs.Data(max_response_tokens=6)
  records = [ranking((f"same a{i}", f"same b{i}"), (1, 2)) for i in range(9)]
  splits, counts = curation.curate(records, data, Letters())
  assert not any(splits.values()) and counts[drops.CUT_EQUAL] == 9
  assert counts.cut == counts.replies == 18


def test_long_prompts_are_dropped_and_counted():
  # The tags are two more words.
  data = configs.Data(max_prompt_tokens=5)
  short, counts = token_limits.drop_long(
    [prompt("one two three"), prompt("one two three four")], Words(), data
  )
  assert texts(short) == ["one two three"]
  assert counts == {drops.LONG: 1}


def test_personal_information_anywhere_in_a_record():
  bad = "jane@corp.io"
  records = [
    prompt(bad),
    Prompt(turns=(Turn("system", bad), Turn("user", "x"))),
    demonstration("x", bad),
    Ranking(turns=(Turn("user", "x"),), completions=("a", bad), ranks=(1, 2)),
  ]
  for record in records:
    remaining, counts = personal.drop_personal([record])
    assert not remaining
    assert counts == {"records with personal information: e-mail address": 1}


def test_filter_is_for_the_train_split_and_can_be_off():
  records = [
    demonstration("a jane@corp.io", split="train"),
    demonstration("b jane@corp.io", split="valid"),
    demonstration("c jane@corp.io", split="test"),
  ]
  splits, counts = curation.curate(records, configs.Data())
  assert {k: len(v) for k, v in splits.items()} == {
    "train": 0, "valid": 1, "test": 1,
  }  # fmt: skip
  assert sum(counts.values()) == 1
  splits, counts = curation.curate(records, configs.Data(filter_personal=False))
  assert len(splits["train"]) == 1 and not counts


def test_curation_accounts_for_every_record():
  data = configs.Data(max_prompts_per_user=3, max_prompt_tokens=8)
  records = [
    demonstration(f"q {i % 40} " + "w " * (i % 8), user_id=f"u{i % 10}")
    for i in range(200)
  ]
  splits, counts = curation.curate(records, data, Words())
  remaining = sum(map(len, splits.values()))
  assert remaining + sum(counts.values()) == 200 and remaining > 10
  assert set(counts) == {
    drops.DUPLICATE, drops.USER_LIMIT, drops.LONG,
  }  # fmt: skip


def test_error_for_no_records_counts_the_reasons():
  data = configs.Data(max_prompt_tokens=1)
  splits, counts = curation.curate([prompt("a b c")], data, Words())
  with pytest.raises(UserError) as e:
    curation.require(splits, counts, "data.prompts")
  assert e.value.field == "data.prompts"
  assert "1 prompts over the token limit" in str(e.value)
  assert "--data.max_prompt_tokens" in e.value.fix
  assert e.value.code == "no_training_records"
  splits, counts = curation.curate([prompt("a", split="train")], data)
  assert curation.require(splits, counts, "data.prompts") == splits["train"]


def test_the_fix_of_an_empty_split_is_that_of_the_largest_cause():
  records = [demonstration("Ask @jane_doe", f"{i}") for i in range(42)]
  records += [demonstration("w " * 9, "x")]
  data = configs.Data(max_prompt_tokens=8, valid_fraction=0, test_fraction=0)
  splits, counts = curation.curate(records, data, Words())
  with pytest.raises(UserError) as e:
    curation.require(splits, counts, "data.demonstrations")
  assert "--data.filter_personal=false" in e.value.fix
  splits, counts = curation.curate([prompt("a", split="test")], data)
  with pytest.raises(UserError) as e:
    curation.require(splits, counts, "data.prompts")
  assert "--data" not in e.value.fix and "1 in test" in e.value.problem


def test_system_turns_that_a_chat_template_omits_are_reported(tmp_path):
  dropping = (
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>"
    "{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
  )
  records = [demonstration(f"the fox {n}") for n in range(4)]
  turns = (Turn("system", "yes"), Turn("user", "the dog"))
  records.append(Demonstration(turns=turns, completion="c"))
  for name, template in (("drops", dropping), ("writes", folders.CHATML)):
    tokenizer = folders.load(
      tmp_path / name,
      folders.byte_level(),
      tokenizer_config={"eos_token": "<|im_end|>", "chat_template": template},
    )
    _, counts = curation.curate(records, configs.Data(), tokenizer)
    messages = [r for r in counts.remarks if r.startswith("1 of 5 records")]
    assert len(messages) == (name == "drops")
    _, counts = curation.curate(
      records, configs.Data(), tokenizer.without_template()
    )
    assert not counts.remarks
