"""Instructions, their checks, and the command that makes and checks them."""

import json

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.instructions import __main__ as command
from instructgpt_jax.instructions import items as items_lib
from instructgpt_jax.instructions import kinds
from instructgpt_jax.instructions.items import Item

# Kind → argument, answers that fulfil it, answers that do not.
EXAMPLES = {
  "lines": (2, ["a b\nc", "\na\n\n  c \n"], ["a", "a\nb\nc", "a\\nb"]),
  "items": (
    3,
    ["- a\n- b\n- c", "- a b.\n\n- b\n- c\n"],
    ["- a\n- b", "Facts:\n- a\n- b\n- c", "* a\n* b\n* c", "- a\n- b\n- ",
     "1. a\n2. b\n3. c", "-a\n-b\n-c", "- a - b - c"],
  ),
  "capitals": (
    "capital letters",
    ["BEES MAKE HONEY.", "ÄPFEL 3"],
    ["Bees MAKE HONEY", "123", "bees", "BEEs"],
  ),
  "json": (
    "name,kind",
    ['{"name": "x", "kind": 1}', '```json\n{"kind": [], "name": ""}\n```',
     '```\n{"kind": 1, "name": 2}\n```'],
    ['{"name": "x"}', '{"name": 1, "kind": 2, "more": 3}', "name, kind",
     'Here: {"name": 1, "kind": 2}', '["name", "kind"]', "{'name': 1}",
     "[" * 100_000],
  ),
  "ending": (
    "goodbye",
    ["Bees fly. Goodbye!", "so long, 'goodbye'."],
    ["goodbye", "Goodbye, bees", "good bye", "say goodbyes"],
  ),
  "letter": (
    "e",
    ["Big cats roar.", "A black thing, hot."],
    ["Bees", "BEES are big", "big cat", "..."],
  ),
  "words": (
    5,
    ["Bees are small flying things.", "one - two three, four five"],
    ["Bees are small", "one two three four five six", ". . . . ."],
  ),
  "beginning": (
    "well",
    ["Well, bees fly.", "'WELL' it is"],
    ["well", "Bees fly well", "Wellness matters", "Oh well then"],
  ),
}  # fmt: skip


def test_every_kind_has_examples():
  assert EXAMPLES.keys() == kinds.KINDS.keys()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_check_of_a_kind(kind):
  argument, fulfilled, others = EXAMPLES[kind]
  check = kinds.KINDS[kind].is_fulfilled
  assert argument in kinds.KINDS[kind].arguments.values()
  assert [a for a in fulfilled if not check(a, argument)] == []
  assert [a for a in (*others, "", " \n") if check(a, argument)] == []


def test_no_answer_fulfils_all_kinds():
  """So a model cannot be good at them by answering everything alike."""
  answers = [a for _, good, _ in EXAMPLES.values() for a in good]
  for answer in answers:
    count = sum(
      kinds.KINDS[kind].is_fulfilled(answer, argument)
      for kind, (argument, _, _) in EXAMPLES.items()
    )
    assert count < len(EXAMPLES) / 2


def test_training_and_test_share_no_topic():
  assert not set(kinds.TRAIN_TOPICS) & set(kinds.TEST_TOPICS)
  train, test = (items_lib.make_items(s, 60) for s in ("train", "test"))
  assert len({i.prompt for i in (*train, *test)}) == 2 * 60 * len(kinds.KINDS)
  assert train == items_lib.make_items("train", 60)
  assert train != items_lib.make_items("train", 60, seed=1)


def test_texts_name_topic_and_argument():
  for kind in kinds.KINDS.values():
    for text in kind.texts:
      assert "{topic}" in text and "{argument}" in text


def answers(path, prompts_and_texts):
  path.write_text(
    "\n".join(
      json.dumps({"prompt": p, "completion": t, "ended": True})
      for p, t in prompts_and_texts
    )
  )
  return str(path)


@pytest.fixture
def items(tmp_path):
  """Returns the path of a file of four instructions, and the instructions."""
  made = [
    Item("Two lines.", "lines", 2),
    Item("Four words.", "words", 4),
    Item("Five words.", "words", 5),
    Item("No e.", "letter", "e"),
  ]
  items_lib.write_items(tmp_path / "items.jsonl", made)
  return str(tmp_path / "items.jsonl"), made


def test_items_are_written_and_read(items):
  path, made = items
  assert items_lib.read_items(path) == made


def test_check_prints_shares_by_kind_and_model(items, tmp_path, capsys):
  path, made = items
  good = answers(
    tmp_path / "good.jsonl",
    zip(
      [i.prompt for i in made],
      ["a\nb", "a b c d", "a b c d", "all that is"],
      strict=True,
    ),
  )
  bad = answers(tmp_path / "bad.jsonl", [(i.prompt, "eh") for i in made])
  output = tmp_path / "table.json"
  flags = ["check", f"--items={path}", good, bad, f"--output={output}"]
  assert command.main(flags) == 0
  table = json.loads(output.read_text())
  means = {k: v["mean"] for k, v in table[good].items()}
  assert means == {"all kinds": 0.75, "lines": 1, "words": 0.5, "letter": 1}
  assert {v["mean"] for v in table[bad].values()} == {0}
  assert table[good]["all kinds"]["low"] < 0.75
  printed = capsys.readouterr().out
  assert "words" in printed and "0.750" in printed and "good.jsonl" in printed


def test_several_answers_to_an_instruction_are_averaged(items, tmp_path):
  path, made = items
  file = answers(
    tmp_path / "a.jsonl",
    [(i.prompt, t) for i in made for t in ("a b c d", "x\ny")],
  )
  prompts = [i.prompt for i in made]
  averages = command.shares(made, items_lib.read_answers(file, prompts))
  assert averages["lines"].mean == 0.5 and averages["words"].mean == 0.25
  assert items_lib.read_items(path) == made


def test_rank_prefers_fulfilled_answers(items, tmp_path, capsys):
  path, made = items
  one = answers(
    tmp_path / "1.jsonl",
    [(i.prompt, t) for i, t in zip(
      made, ["a\nb", "a b", "a b c", "ox"], strict=True)],
  )  # fmt: skip
  two = answers(
    tmp_path / "2.jsonl",
    [(i.prompt, t) for i, t in zip(
      made, ["a", "a b c d", "a b c", ""], strict=True)],
  )  # fmt: skip
  to = tmp_path / "rankings.jsonl"
  assert command.main(["rank", f"--items={path}", f"--to={to}", one, two]) == 0
  rankings = [json.loads(line) for line in to.read_text().splitlines()]
  assert rankings == [
    {"prompt": "Two lines.", "completions": ["a\nb", "a"], "ranks": [1, 2]},
    {"prompt": "Four words.", "completions": ["a b", "a b c d"],
     "ranks": [2, 1]},
  ]  # fmt: skip
  assert "2 rankings; 2 instructions have none" in capsys.readouterr().out


def test_write_makes_prompts_that_stages_read(tmp_path, capsys):
  from instructgpt_jax.data import reading

  flags = ["write", f"--to={tmp_path}", "--per_kind=3", "--test_per_kind=2"]
  assert command.main(flags) == 0
  prompts, _ = reading.read_prompts(str(tmp_path / "train.jsonl"))
  assert len(prompts) == 3 * len(kinds.KINDS)
  assert len(items_lib.read_items(str(tmp_path / "test.jsonl"))) == 16
  assert command.main(flags) == 2
  assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("line", "code"),
  [
    ("{", "bad_json"),
    ("[1]", "not_an_object"),
    ('{"prompt": "a", "kind": "line", "argument": 2}', "unknown_kind"),
    ('{"prompt": "a", "kind": 3, "argument": 2}', "bad_field"),
    ('{"prompt": "a", "kind": "lines", "argument": 7}', "bad_argument"),
    ('{"prompt": "a", "kind": "lines"}', "bad_argument"),
    ('{"kind": "lines", "argument": 2}', "bad_field"),
  ],
)
def test_a_bad_line_of_instructions_is_named(tmp_path, line, code):
  path = tmp_path / "items.jsonl"
  good = '{"prompt": "a", "kind": "lines", "argument": 2}'
  path.write_text(f"{good}\n{line}\n")
  with pytest.raises(UserError) as caught:
    items_lib.read_items(str(path))
  assert caught.value.code == code
  assert (caught.value.file, caught.value.line) == (str(path), 2)


def test_unanswered_instructions_are_an_error(items, tmp_path):
  path, made = items
  file = answers(tmp_path / "a.jsonl", [("Two lines.", "a"), ("Other", "b")])
  with pytest.raises(UserError) as caught:
    items_lib.read_answers(file, [i.prompt for i in made])
  assert caught.value.code == "unanswered"


def test_a_skipped_prompt_is_not_fulfilled(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(
    '{"prompt": "p", "completion": null, "ended": null, "skipped": "long"}'
  )
  assert items_lib.read_answers(str(path), ["p"]) == {"p": [""]}
  path.write_text('{"prompt": "p", "completion": null}')
  with pytest.raises(UserError) as caught:
    items_lib.read_answers(str(path), ["p"])
  assert caught.value.code == "no_completion"


@pytest.mark.parametrize(
  "flags",
  [
    ["write"],
    ["write", "--to=x", "--per_kind=0"],
    ["write", "--to=x", "--per_kind=100000"],
    ["write", "--to=x", "answers.jsonl"],
    ["check", "--items=x"],
    ["check", "--items=missing.jsonl", "a.jsonl"],
    ["rank", "--items=x", "a.jsonl"],
    ["invent"],
    ["write", "--too=x"],
  ],
)
def test_bad_flags_are_errors(flags, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert command.main(flags) == 2
  assert capsys.readouterr().err.startswith("error: ")
  assert not list(tmp_path.iterdir())


def test_nothing_to_rank_is_an_error(items, tmp_path, capsys):
  path, made = items
  file = answers(tmp_path / "a.jsonl", [(i.prompt, "e") for i in made])
  to = tmp_path / "rankings.jsonl"
  assert command.main(["rank", f"--items={path}", f"--to={to}", file]) == 2
  assert "unfulfilled" in capsys.readouterr().err and not to.exists()
