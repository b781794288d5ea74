"""Two measured models, paired by prompt and item."""

import copy
import json

import numpy as np
import pytest

from experiments import compare as compare_main
from instructgpt_jax.evaluation import evaluate, paired
from tests import printed

PROMPTS = 40


def make_answers(shift, seed):
  """Makes answers.json of a model; prompts differ far more than models do."""
  prompts = np.random.default_rng(0).normal(0, 10, (PROMPTS, 1))
  noise = np.random.default_rng(seed).normal(0, 0.1, (PROMPTS, 2))
  values = (prompts + shift + noise).tolist()
  part = dict.fromkeys(("gold", "rm", "kl", "length", "ended"), values) | {
    "failures": {"hallucination": values}
  }
  return {
    "prompts": [f"p{i}" for i in range(PROMPTS)],
    "sampled": part,
    "greedy": {name: part[name] for name in part if name != "kl"},
    "tasks": {"sst2": [float(i % 2) for i in range(PROMPTS)]},
    "task_answers": {
      "sst2": [{"id": str(i), "prompt": f"q{i}"} for i in range(PROMPTS)]
    },
    "lm": {
      "nll": [2.0 + shift * (i % 3) for i in range(PROMPTS)],
      "weight": [1.0 + i % 3 for i in range(PROMPTS)],
    },
    "bias": [0.5] * 10,
  }


def test_differences_are_paired_by_prompt():
  first, second = make_answers(0.0, 1), make_answers(1.0, 2)
  measures, left_out = paired.compare(first, second, ("a", "b"))
  assert left_out == []
  gold = measures["gold"]
  assert gold.first == pytest.approx(np.mean(first["sampled"]["gold"]))
  assert gold.second == pytest.approx(np.mean(second["sampled"]["gold"]))
  assert gold.first is not None and gold.second is not None
  assert gold.difference.mean == pytest.approx(gold.second - gold.first)
  # Unpaired, the prompts' spread of 10 would make it wider than 2.
  assert gold.difference.high - gold.difference.low < 0.2
  assert measures[paired.WIN_RATE].difference.mean == 1
  assert measures["sst2"].difference.mean == 0
  loss = measures["lm_loss"]
  weights = np.sum(first["lm"]["weight"])
  assert loss.second == pytest.approx(np.sum(second["lm"]["nll"]) / weights)
  assert loss.first is not None and loss.second is not None
  assert loss.difference.mean == pytest.approx(loss.second - loss.first)
  assert loss.difference.low < loss.difference.mean < loss.difference.high
  assert {"greedy_gold", "failures.hallucination", "bias_entropy"} <= set(
    measures
  )


def test_items_about_one_text_are_one_unit():
  models = make_answers(0.0, 1), make_answers(1.0, 2)
  for shift, answers in enumerate(models):
    answers["tasks"]["drop"] = [float(shift * (i % 3)) for i in range(PROMPTS)]
    answers["task_answers"]["drop"] = [
      {"id": str(i), "prompt": f"q{i}", "group": f"text {i // 2}"}
      for i in range(PROMPTS)
    ]
  measures, _ = paired.compare(*models, ("a", "b"))
  assert measures["sst2"].difference.units == PROMPTS
  drop = measures["drop"].difference
  assert drop.units == PROMPTS // 2
  assert drop.mean == pytest.approx(np.mean(models[1]["tasks"]["drop"]))


def test_a_tie_is_half_a_win():
  first, second = make_answers(0.0, 1), make_answers(0.0, 1)
  rate = paired.compare(first, second, ("a", "b")).measures[paired.WIN_RATE]
  # Each model's two samples: one win, one loss and two ties.
  assert rate.difference.mean == 0.5


def test_measures_of_other_items_are_left_out():
  first, second = make_answers(0.0, 1), make_answers(1.0, 2)
  second["task_answers"]["sst2"][3]["id"] = "99"
  second["lm"]["weight"][0] = 7.0
  del second["bias"]
  measures, left_out = paired.compare(first, second, ("a", "b"))
  assert not {"sst2", "lm_loss", "bias_entropy"} & set(measures)
  assert sorted(left_out) == [
    "bias_entropy: b does not have it",
    "lm_loss: the models have other items",
    "sst2: the models have other items",
  ]


@pytest.mark.parametrize("older", [(0,), (1,), (0, 1)])
def test_tasks_of_older_measurements_are_left_out(older):
  models = make_answers(0.0, 1), make_answers(1.0, 2)
  for i in older:
    del models[i]["task_answers"]
  measures, left_out = paired.compare(*models, ("a", "b"))
  assert "sst2" not in measures
  assert left_out == [f"sst2: {'ab'[older[-1]]} has no answers to its items"]
  assert measures["gold"].difference.mean == pytest.approx(1, abs=0.1)


def test_the_command_prints_and_writes_the_figures(
  tmp_path, capsys, monkeypatch
):
  errors = printed.record_errors(monkeypatch)
  answers = make_answers(0.0, 1), make_answers(1.0, 2)
  other = copy.deepcopy(answers[0]) | {"prompts": ["q"] * PROMPTS}
  for name, value in zip("abc", (*answers, other), strict=True):
    (tmp_path / name).mkdir()
    (tmp_path / name / evaluate.ANSWERS).write_text(json.dumps(value))
  paths = [str(tmp_path / name) for name in "abcd"]
  output = tmp_path / "figures.json"
  flags = [f"--models={paths[0]},{paths[1]}", f"--output={output}"]
  assert compare_main.main(flags) == 0
  assert "| win_rate | – | – | 1.000" in capsys.readouterr().out
  figures = json.loads(output.read_text())
  assert figures["measures"]["gold"]["difference"]["units"] == PROMPTS
  for arguments, code in (
    (flags, "output_exists"),
    ([f"--models={paths[0]}"], "bad_model"),
    ([f"--models={paths[0]},{paths[2]}"], "other_prompts"),
    ([f"--models={paths[0]},{paths[3]}"], "no_file"),
  ):
    assert compare_main.main(arguments) == 2
    assert errors[-1].code == code
