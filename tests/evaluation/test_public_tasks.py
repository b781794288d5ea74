"""Public tasks in their publishers' formats."""

import json

import jax
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import public_tasks, tasks

HELLASWAG = {
  "ind": 1,
  "ctx": "A man sits. he",
  "endings": ["stands.", "flies.", "melts.", "sings."],
  "label": "2",
}


def write(path, *lines):
  path.write_text("".join(f"{line}\n" for line in lines))
  return str(path)


def test_items_of_each_format(tmp_path):
  files = {
    "hellaswag": write(tmp_path / "h.jsonl", json.dumps(HELLASWAG)),
    "lambada": write(tmp_path / "l.jsonl", '{"text": "He met my friend"}'),
    "sst2": write(tmp_path / "s.tsv", "sentence\tlabel", "an old film\t1"),
  }
  spec = ",".join(f"{name}={path}" for name, path in files.items())
  assert public_tasks.read_tasks(spec, 5) == [
    {
      "kind": "hellaswag",
      "prompt": HELLASWAG["ctx"],
      "choices": HELLASWAG["endings"],
      "answer": 2,
    },
    {"kind": "lambada", "prompt": "He met my", "next_word": "friend"},
    {
      "kind": "sst2",
      "prompt": "Review: an old film\nSentiment:",
      "choices": ["negative", "positive"],
      "answer": 1,
    },
  ]


def test_a_count_draws_the_same_items_again(tmp_path):
  texts = [json.dumps({"text": f"the number {i}"}) for i in range(100)]
  spec = f"lambada={write(tmp_path / 'l.jsonl', *texts)}"
  drawn = public_tasks.read_tasks(spec, 10)
  assert drawn == public_tasks.read_tasks(spec, 10)
  assert len({item["next_word"] for item in drawn}) == 10
  assert drawn != public_tasks.read_tasks(spec, 10, seed=1)
  assert public_tasks.read_tasks("", 10) == []


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("hellaswag", json.dumps(HELLASWAG | {"label": 4})),
    ("hellaswag", json.dumps(HELLASWAG | {"label": ""})),
    ("hellaswag", '{"ctx": "a", "endings": [1], "label": 0}'),
    ("hellaswag", "[]"),
    ("lambada", '{"text": "word"}'),
    ("lambada", '{"texts": "two words"}'),
    ("sst2", "no label"),
    ("sst2", "a film\t2"),
    ("sst2", "\t1"),
  ],
)
def test_a_malformed_item_names_its_line(tmp_path, name, line):
  good = {
    "hellaswag": json.dumps(HELLASWAG),
    "lambada": '{"text": "two words"}',
    "sst2": "a film\t0",
  }[name]
  path = write(tmp_path / "items", good, line)
  with pytest.raises(UserError) as caught:
    public_tasks.read_tasks(f"{name}={path}", 5)
  assert (caught.value.code, caught.value.line) == ("bad_task_item", 2)


@pytest.mark.parametrize(
  ("spec", "code"),
  [
    ("helaswag=a", "bad_task"),
    ("lambada", "bad_task"),
    ("lambada=", "bad_task"),
  ],
)
def test_a_spec_that_names_no_task_is_an_error(spec, code):
  with pytest.raises(UserError) as caught:
    public_tasks.read_tasks(spec, 5)
  assert caught.value.code == code


def test_a_file_without_items_is_an_error(tmp_path):
  with pytest.raises(UserError) as caught:
    public_tasks.read_tasks(
      f"sst2={write(tmp_path / 's', 'sentence	label')}", 5
    )
  assert caught.value.code == "no_items"


@pytest.mark.parametrize(
  ("answer", "right"),
  [
    (" friend. Then", 1.0),
    ("friend,", 1.0),
    ("friends", 0.0),
    ("", 0.0),
    (" my friend", 0.0),
  ],
)
def test_the_next_word_is_compared_without_punctuation(
  monkeypatch, answer, right
):
  monkeypatch.setattr(tasks.sampling, "respond", lambda *_, **__: None)
  monkeypatch.setattr(tasks.sampling, "texts", lambda *_: [answer])
  monkeypatch.setattr(tasks.sampling, "sampling_params", lambda *_, **__: None)
  monkeypatch.setattr(tasks.encoding, "encode_documents", lambda *_: [])
  item = {"kind": "lambada", "prompt": "his old", "next_word": "friend"}
  scores = tasks.score_tasks(
    None,
    None,
    [item],
    tokenizer=None,
    max_new_tokens=1,
    mesh=jax.sharding.Mesh,
  )
  assert scores == {"lambada": [right]}
