"""Rankings of a model's answers below those of demonstrations."""

import json

import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.real import references


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture
def demonstrations(tmp_path):
  return write(
    tmp_path / "demonstrations.jsonl",
    (
      {"prompt": f"Say {i}.", "completion": "long " * 60 if i % 2 else f"{i}"}
      for i in range(10)
    ),
  )


def test_short_answers_of_demonstrations_rank_first(tmp_path, demonstrations):
  prompts, to = tmp_path / "prompts.jsonl", tmp_path / "rankings.jsonl"
  references.draw(demonstrations, prompts, 3)
  rows = read(prompts)
  assert len(rows) == 3
  answers = [
    write(
      tmp_path / f"{seed}.jsonl",
      (
        {"prompt": r["prompt"], "completion": c}
        for r, c in zip(rows, texts, strict=False)
      ),
    )
    for seed, texts in enumerate(
      # Of the second prompt both are equal; of the third none is of use.
      [["one", "same", rows[2]["reference"]], ["two", "same", " "]]
    )
  ]
  references.rank(prompts, answers, to)
  rankings, _ = reading.read_rankings(str(to))
  assert [r.completions for r in rankings] == [
    (rows[0]["reference"], "one", "two"),
    (rows[1]["reference"], "same"),
  ]
  assert [r.ranks for r in rankings] == [(1, 2, 2), (1, 2)]
  assert rankings[0].turns[-1].text == rows[0]["prompt"][-1]["content"]


def test_a_prompt_that_was_too_long_has_no_answer(tmp_path, demonstrations):
  prompts, to = tmp_path / "prompts.jsonl", tmp_path / "rankings.jsonl"
  references.draw(demonstrations, prompts, 1)
  skipped = {"prompt": "…", "completion": None, "skipped": "too long"}
  references.rank(prompts, [write(tmp_path / "a.jsonl", [skipped])], to)
  assert read(to) == []


def test_as_many_prompts_as_there_are(tmp_path, demonstrations):
  references.draw(demonstrations, tmp_path / "prompts.jsonl", 50)
  assert len(read(tmp_path / "prompts.jsonl")) == 5


def test_only_long_demonstrations_are_an_error(tmp_path):
  path = write(
    tmp_path / "d.jsonl", [{"prompt": "Say it.", "completion": "long " * 60}]
  )
  with pytest.raises(UserError) as caught:
    references.draw(path, tmp_path / "prompts.jsonl", 3)
  assert caught.value.code == "no_references"
