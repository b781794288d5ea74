"""Tests how rankings are divided between the reward model and the judge."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.records import Ranking, Turn
from instructgpt_jax.pipeline import rankings
from instructgpt_jax.training import inputs


@pytest.mark.parametrize("system", [False, True])
def test_conversations_that_begin_alike_are_divided(
  tmp_path, monkeypatch, system
):
  records = []
  for i in range(60):
    turns = (Turn("user", "Hi!"),)
    if system:
      turns = (Turn("system", f"Text {i}"), *turns)
    else:
      turns += (Turn("assistant", "Hello."), Turn("user", f"Question {i}?"))
    records.append(
      Ranking(
        turns=turns,
        completions=("a", "b"),
        ranks=(1, 2),
        grades=(3, 0)[: 2 * i],
      )
    )
  pools = inputs.Splits(records[:50], records[50:], [])
  monkeypatch.setattr(inputs, "rankings", lambda data, tokenizer: pools)
  rankings.split_for_judge(configs.PipelineExperiment(), str(tmp_path), None)
  prompts = []
  for path in (
    rankings.reward_rankings_path(tmp_path),
    rankings.judge_rankings_path(tmp_path),
  ):
    with open(path) as file:
      lines = [json.loads(s) for s in file]
    prompts.append({json.dumps(line["prompt"]) for line in lines})
    # All but the first have grades.
    assert sum("grades" in line for line in lines) >= len(lines) - 1
    assert all(line.get("grades", [3, 0]) == [3, 0] for line in lines)
  assert min(map(len, prompts)) >= 5 and sum(map(len, prompts)) == 60
  assert not prompts[0] & prompts[1]
