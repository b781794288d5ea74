"""Public tasks: reading, answering and counting."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import train_tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import tasks
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.training import sampling
from tests.models import twin

CLOSED = [
  {
    "kind": "sentiment",
    "prompt": prompt,
    "choices": ["good", "very bad", "bad"],
    "answer": answer,
  }
  for answer, prompt in enumerate(["the boat is", "a cat is", "is the cat"])
]
OPEN = [
  {"kind": "translation", "prompt": "the cat", "reference": "a boat"},
  {"kind": "translation", "prompt": "a very good boat is", "reference": "bad"},
]


@pytest.fixture(scope="module")
def tokenizer():
  config = configs.Tokenizer(kind="word", vocab_size=64)
  return train_tokenizer(["the a boat cat is good very bad . "] * 2, config)


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make_mesh(configs.Mesh())


@pytest.fixture(scope="module")
def model(tokenizer):
  return LanguageModel(twin.make_config(vocab_size=tokenizer.vocab_size))


@pytest.fixture(scope="module")
def params(model):
  return twin.make_params(model)


@pytest.fixture(scope="module")
def measure(model, params, tokenizer, mesh):
  def call(items):
    return tasks.score_tasks(
      model, params, items, tokenizer=tokenizer, max_new_tokens=4, mesh=mesh
    )

  return call


def test_the_choice_with_the_best_mean_log_probability_is_taken(
  params, tokenizer, measure
):
  expected = []
  for item in CLOSED:
    means = []
    for choice in item["choices"]:
      prompt, answer = (tokenizer.encode(t) for t in (item["prompt"], choice))
      row = np.array([prompt + answer])
      logp = twin.log_softmax(twin.logits(params, row, np.ones_like(row))[0])
      at = np.arange(len(prompt) - 1, row.shape[1] - 1)
      means.append(logp[at, answer].mean())
    expected.append(float(np.argmax(means) == item["answer"]))
  assert measure(CLOSED)["sentiment"] == expected
  # The other answers give the other outcomes.
  for shift in (1, 2):
    moved = [i | {"answer": (i["answer"] + shift) % 3} for i in CLOSED]
    expected.extend(measure(moved)["sentiment"])
  assert sum(expected) == len(CLOSED)


def test_open_questions_are_answered_greedily_and_matched_exactly(
  monkeypatch, measure
):
  temperatures = []

  def respond(*args, **kwargs):
    temperatures.append(kwargs["sampling"].temperature)
    return honest(*args, **kwargs)

  honest = sampling.respond
  monkeypatch.setattr(sampling, "respond", respond)
  monkeypatch.setattr(
    sampling, "texts", lambda *_: ["a boat . and more", "very bad ."]
  )
  assert measure(OPEN)["translation"] == [1.0, 0.0]
  assert temperatures == [0.0]


def test_kinds_are_counted_apart(measure):
  assert set(measure(CLOSED + OPEN)) == {"sentiment", "translation"}


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "is not JSON"),
    ("[1]", "is not a task item"),
    ('{"kind": "facts"}', "is not a task item"),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  path = tmp_path / "tasks.jsonl"
  path.write_text(json.dumps(OPEN[0]) + "\n" + line + "\n")
  with pytest.raises(UserError) as error:
    tasks.read_items(str(path))
  assert message in str(error.value) and "tasks.jsonl:2:" in str(error.value)


def test_items_of_tables_are_those_of_json_lines(tmp_path):
  items = [
    {"kind": "cloze", "prompt": "the fox, it", "reference": "sleeps"},
    {"kind": "choice", "prompt": "q", "choices": ["a", "b"], "answer": 1},
  ]
  path = tmp_path / "x.jsonl"
  path.write_text("".join(json.dumps(item) + "\n" for item in items))
  assert tasks.read_items(str(path)) == items
  path = tmp_path / "x.csv"
  path.write_text(
    "kind,prompt,reference,choices,answer\n"
    'cloze,"the fox, it",sleeps,,\n'
    'choice,q,,"[""a"", ""b""]",1\n'
  )
  assert tasks.read_items(str(path)) == items
  names = dict.fromkeys(name for item in items for name in item)
  columns = {name: [item.get(name) for item in items] for name in names}
  path = tmp_path / "x.parquet"
  pa.parquet.write_table(pa.table(columns), path)
  assert tasks.read_items(str(path)) == items


@pytest.mark.parametrize("answer", ["2", "-1", "true", "null", '"b"'])
def test_an_answer_is_the_index_of_a_choice(tmp_path, answer):
  path = tmp_path / "x.jsonl"
  path.write_text(
    f'{{"kind": "k", "prompt": "q", "choices": [1, 2], "answer": {answer}}}\n'
  )
  with pytest.raises(UserError) as e:
    tasks.read_items(str(path))
  assert (e.value.code, e.value.line, e.value.field) == (
    "bad_task_item", 1, "answer",
  )  # fmt: skip
