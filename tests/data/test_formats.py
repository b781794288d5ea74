"""Each known format is read to exact records."""

import gzip
import json

import pytest

from instructgpt_jax.data import reading, records
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError


def write(path, values, array=False):
  text = (
    json.dumps(values, indent=2)
    if array
    else "".join(json.dumps(v) + "\n" for v in values)
  )
  path.write_text(text, encoding="utf-8")
  return str(path)


def user(text):
  return (Turn("user", text),)


def demonstrations(tmp_path, *values, name="x.jsonl"):
  spec = write(tmp_path / name, values, array=name.endswith(".json"))
  return reading.read_demonstrations(spec)


def rankings(tmp_path, *values):
  return reading.read_rankings(write(tmp_path / "x.jsonl", values))


def pairs(actual):
  return [(r.turns, r.completion) for r in actual]


def test_demonstrations_of_our_format(tmp_path):
  actual, report = demonstrations(
    tmp_path,
    {
      "prompt": "Hi",
      "completion": " Yo \n",
      "user_id": 7,
      "labeler_id": "l",
      "split": "validation",
    },
    {"prompt": "A", "completion": "B<|endoftext|>", "unknown": [1]},
  )
  assert pairs(actual) == [(user("Hi"), "Yo"), (user("A"), "B")]
  assert (actual[0].user_id, actual[0].labeler_id) == ("7", "l")
  assert [r.split for r in actual] == ["valid", ""]
  assert actual[1].origin == f"{tmp_path}/x.jsonl:2"
  assert report.records == 2 and not report.skipped
  assert report.files[0].format == "own demonstrations"


def test_prompt_as_transcript_or_turns(tmp_path):
  turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
  actual, _ = demonstrations(
    tmp_path,
    {
      "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
      "completion": "d",
    },
    {
      "prompt": [{"role": t.role, "content": t.text} for t in turns],
      "completion": "d",
    },
    {"prompt": "Human: is what this text starts with", "completion": "d"},
  )
  assert [r.turns for r in actual[:2]] == [turns, turns]
  assert actual[2].turns == user("is what this text starts with")


def test_rankings_of_our_format(tmp_path):
  actual, _ = rankings(
    tmp_path,
    {
      "prompt": "p",
      "completions": ["a", "b", "c"],
      "ranks": [2, 1, 2],
      "labeler_id": 3,
    },
  )
  (r,) = actual
  assert (r.completions, r.ranks) == (("a", "b", "c"), (2, 1, 2))
  assert r.labeler_id == "3"


def test_prompts_and_text_of_our_format(tmp_path):
  actual, _ = reading.read_prompts(
    write(tmp_path / "p.jsonl", [{"prompt": "p", "user_id": "u"}])
  )
  assert actual[0].turns == user("p") and actual[0].user_id == "u"
  documents, report = reading.read_documents(
    write(tmp_path / "t.jsonl", [{"text": "one"}, {"text": "two\n\n"}])
  )
  assert [d.text for d in documents] == ["one", "two\n\n"]
  (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfa book\r\nline 2\n")
  documents, report = reading.read_documents(str(tmp_path / "b.txt"))
  assert [d.text for d in documents] == ["a book\nline 2\n"]
  assert report.files[0].format == "plain text"


@pytest.mark.parametrize(
  "value, turns, completion",
  [
    (
      {"instruction": "Add.", "input": "1 2", "output": "3"},
      user("Add.\n\n1 2"),
      "3",
    ),
    ({"instruction": "Add.", "input": "", "output": "3"}, user("Add."), "3"),
    ({"instruction": "Add.", "output": "3"}, user("Add."), "3"),
    (
      {
        "instruction": "When?",
        "context": "In 1990.",
        "response": "1990",
        "category": "closed_qa",
      },
      user("When?\n\nIn 1990."),
      "1990",
    ),
    ({"question": "1+1?", "answer": "#### 2"}, user("1+1?"), "#### 2"),
    (
      {
        "messages": [
          {"role": "system", "content": "S"},
          {"role": "user", "content": "a"},
          {"role": "assistant", "content": "b"},
          {"role": "user", "content": [{"type": "text", "text": "c"}]},
          {"role": "assistant", "content": "d"},
          {"role": "user", "content": "never answered"},
        ]
      },
      (
        Turn("system", "S"),
        Turn("user", "a"),
        Turn("assistant", "b"),
        Turn("user", "c"),
      ),
      "d",
    ),
    (
      {
        "conversations": [
          {"from": "human", "value": "a"},
          {"from": "gpt", "value": "b"},
        ],
        "system": "S",
      },
      (Turn("system", "S"), Turn("user", "a")),
      "b",
    ),
  ],
)
def test_public_demonstrations(tmp_path, value, turns, completion):
  for name in ("x.jsonl", "x.json"):
    actual, _ = demonstrations(tmp_path, value, name=name)
    assert pairs(actual) == [(turns, completion)]


def test_self_instruct_seeds(tmp_path):
  value = {
    "id": "seed_task_0",
    "instruction": "Do.",
    "instances": [
      {"input": "", "output": "x"},
      {"input": "i", "output": "y"},
      {"input": "j", "output": ""},
    ],
  }
  actual, _ = demonstrations(tmp_path, value)
  assert pairs(actual) == [(user("Do."), "x"), (user("Do.\n\ni"), "y")]


HUMAN = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
TURNS = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
MESSAGES = [{"role": t.role, "content": t.text} for t in TURNS]


@pytest.mark.parametrize(
  "value, turns",
  [
    ({"chosen": HUMAN + "good", "rejected": HUMAN + "bad"}, TURNS),
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, user("q")),
    ({"prompt": HUMAN, "chosen": "good", "rejected": "bad"}, TURNS),
    (
      {
        "prompt": "c",
        "chosen": [*MESSAGES, {"role": "assistant", "content": "good"}],
        "rejected": [*MESSAGES, {"role": "assistant", "content": "bad"}],
      },
      TURNS,
    ),
    (
      {
        "chosen": [*MESSAGES, {"role": "assistant", "content": "good"}],
        "rejected": [*MESSAGES, {"role": "assistant", "content": "bad"}],
      },
      TURNS,
    ),
    (
      {
        "conversations": [
          {"from": "human", "value": "a"},
          {"from": "gpt", "value": "b"},
          {"from": "human", "value": "c"},
        ],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
      },
      TURNS,
    ),
    (
      {
        "instruction": "q",
        "output_1": "good",
        "output_2": "bad",
        "preference": 1.0,
      },
      user("q"),
    ),
    ({"input": "q", "output_1": "good", "output_2": "bad", "label": 1},
     user("q")),
    (
      {
        "instruction": "q",
        "input": "i",
        "response1": "good",
        "response2": "bad",
        "annotator1": 1,
        "annotator2": 2,
        "annotator3": 1,
      },
      user("q\n\ni"),
    ),
  ],
)  # fmt: skip
def test_public_pairs(tmp_path, value, turns):
  """The better reply has rank 1; the other label swaps the ranks."""
  (r,), _ = rankings(tmp_path, value)
  assert r.turns == turns
  assert (r.completions, r.ranks) == (("good", "bad"), (1, 2))
  flip = {1: 2, 2: 1}
  turned = {
    k: flip[v] if k[:4] in ("pref", "labe", "anno") else v
    for k, v in value.items()
  }
  if turned != value:
    (r,), _ = rankings(tmp_path, turned)
    assert (r.completions, r.ranks) == (("good", "bad"), (2, 1))


def test_public_pairs_that_nobody_can_use_are_counted(tmp_path):
  good = {"chosen": HUMAN + "good", "rejected": HUMAN + "bad"}
  other = "\n\nHuman: z\n\nAssistant: bad"
  actual, report = rankings(
    tmp_path,
    good,
    {"chosen": HUMAN + "good", "rejected": other},
    {"chosen": HUMAN + "good", "rejected": HUMAN},
    {"chosen": HUMAN + "same", "rejected": HUMAN + "same"},
  )
  assert len(actual) == 1
  assert report.skipped == {
    "pairs whose prompts differ": 1,
    "empty completions": 1,
    "pairs of identical replies": 1,
  }


def test_ties_of_pairs_are_counted(tmp_path):
  base = {"instruction": "q", "output_1": "a", "output_2": "b"}
  actual, report = rankings(
    tmp_path,
    *({**base, "preference": p} for p in (1, 0, 1.5, None)),
  )
  assert len(actual) == 1
  assert report.skipped == {
    "rankings with only ties": 2,
    "replies without a preference": 1,
  }
  base = {"instruction": "q", "response1": "a", "response2": "b"}
  votes = [(1, 2, 0), (0, 0, 1), (2, 2, 0)]
  actual, report = rankings(
    tmp_path,
    *({**base, **{f"annotator{i + 1}": v for i, v in enumerate(vs)}}
      for vs in votes),
  )  # fmt: skip
  assert [r.ranks for r in actual] == [(2, 1)]
  assert report.skipped == {"rankings with only ties": 2}


def node(text, role, rank=None, replies=(), **more):
  return dict(text=text, role=role, rank=rank, replies=list(replies), **more)


def test_open_assistant_trees(tmp_path):
  tree = {
    "message_tree_id": "t",
    "prompt": node(
      "p0",
      "prompter",
      replies=[
        node(
          "worse",
          "assistant",
          1,
          [
            node(
              "p1", "prompter", replies=[node("only after worse", "assistant")]
            )
          ],
        ),
        node(
          "best",
          "assistant",
          0,
          [
            node(
              "p2",
              "prompter",
              replies=[
                node("x", "assistant", 2),
                node("y", "assistant", 1),
                node("gone", "assistant", 0, deleted=True),
                node("not ranked", "assistant"),
              ],
            )
          ],
        ),
      ],
    ),
  }
  spec = write(tmp_path / "trees.jsonl", [tree])
  actual, report = reading.read_rankings(spec)
  assert report.files[0].format == "Open-Assistant trees"
  got = {r.turns[-1].text: (r.completions, r.ranks) for r in actual}
  assert got == {
    "p0": (("worse", "best"), (2, 1)),
    "p2": (("x", "y"), (2, 1)),
  }
  assert actual[1].turns == (
    Turn("user", "p0"),
    Turn("assistant", "best"),
    Turn("user", "p2"),
  )
  demos, _ = reading.read_demonstrations(spec)
  assert [(d.turns[-1].text, d.completion) for d in demos] == [
    ("p0", "best"),
    ("p2", "y"),
  ]
  prompts, _ = reading.read_prompts(spec)
  assert [p.turns[-1].text for p in prompts] == ["p0", "p2"]


def test_prompts_from_anything(tmp_path):
  for value in (
    "Why?",
    {"prompt": "Why?"},
    {"prompt": "Why?", "completion": "So."},
    {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2]},
    {"prompt": "Why?", "chosen": "a", "rejected": "b"},
    {"instruction": "Why?", "input": "", "output": "So."},
    {"prompt": "Why?", "completions": [{"model": "m", "completion": "c"}]},
    {"question_id": 1, "category": "x", "turns": ["Why?", "And?"]},
    {"question_id": 1, "category": "x", "text": "Why?"},
    {"messages": [{"role": "user", "content": "Why?"}]},
    {
      "prompt": "Q",
      "instruction": "Why?",
      "input": "",
      "response": "r",
      "target": "t",
    },
  ):
    actual, _ = reading.read_prompts(write(tmp_path / "p.jsonl", [value]))
    assert [p.turns for p in actual] == [user("Why?")], value
    assert all(isinstance(p, records.Prompt) for p in actual)


@pytest.mark.parametrize(
  "read, value, field",
  [
    (reading.read_demonstrations, {"prompt": "p"}, "completion"),
    (
      reading.read_demonstrations,
      {"prompt": "p", "chosen": "a", "rejected": "b"},
      "completion",
    ),
    (reading.read_rankings, {"prompt": "p", "completion": "c"}, "completions"),
    (reading.read_documents, {"prompt": "p", "completion": "c"}, "text"),
    (reading.read_prompts, {"text": "a text"}, "prompt"),
  ],
)
def test_kinds_that_do_not_convert(tmp_path, read, value, field):
  with pytest.raises(UserError) as e:
    read(write(tmp_path / "x.jsonl", [value]))
  assert (e.value.line, e.value.field) == (1, field)
  assert "recognised as" in str(e.value)


def test_gzip_with_any_name(tmp_path):
  line = b'{"prompt": "p", "completion": "c"}\n'
  for name in ("x.jsonl.gz", "packed.jsonl"):
    # Two members, as `cat a.gz b.gz` makes them.
    (tmp_path / name).write_bytes(gzip.compress(line) + gzip.compress(line))
    actual, _ = reading.read_demonstrations(str(tmp_path / name))
    assert len(actual) == 2


def test_json_array_lines(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(
    '[\n  {"prompt": "a",\n   "completion": "b"},\n\n  {"prompt": "c",\n'
    '   "completion": "d"}\n]\n'
  )
  actual, _ = reading.read_demonstrations(str(path))
  assert [r.origin for r in actual] == [f"{path}:2", f"{path}:5"]
  path.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
  assert len(reading.read_demonstrations(str(path))[0]) == 2
