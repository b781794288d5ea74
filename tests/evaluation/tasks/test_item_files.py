"""Files of one's own items, such as the embedded world's."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import answers, item_files, registry
from tests.evaluation.tasks import fakes

OPEN = {"kind": "cloze", "prompt": "the fox, it", "reference": "sleeps"}
CLOSED = {"kind": "choice", "prompt": "q", "choices": ["a", "b"], "answer": 1}


def test_each_kind_is_a_task(tmp_path):
  path = fakes.write(tmp_path / "x.jsonl", [OPEN, CLOSED, OPEN])
  items = item_files.read_items(path)
  assert {kind: len(of_kind) for kind, of_kind in items.items()} == {
    "cloze": 2, "choice": 1,
  }  # fmt: skip
  (closed,) = items["choice"]
  assert (closed.choices, closed.right) == ((" a", " b"), (1,))
  assert items["cloze"][0].references == ("sleeps",)


def test_items_of_tables_are_those_of_json_lines(tmp_path):
  expected = item_files.read_items(
    fakes.write(tmp_path / "x.jsonl", [OPEN, CLOSED])
  )
  table = fakes.write(
    tmp_path / "x.csv",
    "kind,prompt,reference,choices,answer\n"
    'cloze,"the fox, it",sleeps,,\n'
    'choice,q,,"[""a"", ""b""]",1\n',
  )
  names = dict.fromkeys([*OPEN, *CLOSED])
  columns = {n: [item.get(n) for item in (OPEN, CLOSED)] for n in names}
  pa.parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
  for path in (table, str(tmp_path / "x.parquet")):
    items = item_files.read_items(path)
    for kind in expected:
      (item,), (other,) = items[kind], expected[kind]
      assert item.prompt == other.prompt and item.choices == other.choices
      assert (item.right, item.references) == (other.right, other.references)


@pytest.mark.parametrize(
  ("line", "code"),
  [
    ("{", "bad_json"),
    ("[1]", "bad_task_item"),
    ('{"kind": "facts"}', "bad_task_item"),
    ('{"kind": "facts", "prompt": "q"}', "bad_task_item"),
    ('{"kind": "k", "prompt": "q", "choices": "ab", "answer": 0}',
     "bad_task_item"),
  ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, code):
  path = fakes.write(tmp_path / "x.jsonl", f"{json.dumps(OPEN)}\n{line}\n")
  with pytest.raises(UserError) as caught:
    item_files.read_items(path)
  assert (caught.value.code, caught.value.line) == (code, 2)
  assert caught.value.file == path


@pytest.mark.parametrize("answer", ["2", "-1", "true", "null", '"b"', "0.5"])
def test_an_answer_is_the_index_of_a_choice(tmp_path, answer):
  path = fakes.write(
    tmp_path / "x.jsonl",
    f'{{"kind": "k", "prompt": "q", "choices": [1, 2], "answer": {answer}}}\n',
  )
  with pytest.raises(UserError) as caught:
    item_files.read_items(path)
  error = caught.value
  assert (error.code, error.line, error.field) == ("bad_task_item", 1, "answer")


def test_generated_answers_are_cut_after_a_sentence(tmp_path):
  path = fakes.write(tmp_path / "x.jsonl", [OPEN, OPEN, CLOSED])
  items = item_files.read_items(path)
  replies = iter([" sleeps . and more", " very sleepy ."])
  model = fakes.FakeModel(
    reply=lambda _: next(replies), total=lambda _, text: float(text == " b")
  )
  asked = registry.Questions(item_files.make_task("cloze", 7), items["cloze"])
  rows = answers.measure(model, asked)
  assert [row.scores for row in rows] == [
    {"exact_match": 1.0}, {"exact_match": 0.0},
  ]  # fmt: skip
  assert model.stops == [(("\n",), 7)]
  asked = registry.Questions(item_files.make_task("choice", 7), items["choice"])
  (row,) = answers.measure(model, asked)
  assert row.scores["accuracy"] == 1.0 and len(model.prompts) == 2
