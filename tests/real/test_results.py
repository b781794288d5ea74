"""Results of a run on real data, gathered from files of a small run."""

import json

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.instructions import items as items_lib
from instructgpt_jax.real import example_prompts, results, steps
from instructgpt_jax.runs import files

ITEMS = [
  *(
    items_lib.Item(
      f"Write about {topic} in capitals.", "capitals", "capital letters"
    )
    for topic in ("tea", "rain", "cats")
  ),
  *(
    items_lib.Item(f"Describe {topic} in three words.", "words", 3)
    for topic in ("tea", "rain", "cats")
  ),
]
# Model → how many instructions of each kind it fulfils.
FULFILLED = {
  "base": (0, 0),
  "policy_init": (1, 0),
  "sft": (1, 1),
  "ppo_0": (3, 2),
  "ppo_ptx_0": (2, 2),
}


def answer(item, fulfils):
  if item.kind == "capitals":
    return "LOUD" if fulfils else "quiet"
  return "one two three" if fulfils else "one two"


@pytest.fixture
def plan(tmp_path):
  plan = steps.Plan(str(tmp_path), {"lambada": "l.jsonl"}, [0])
  for name in ("instructions", "answers"):
    plan.path(name).mkdir()
  items_lib.write_items(plan.path("instructions") / "test.jsonl", ITEMS)
  for offset, (model, (capitals, words)) in enumerate(FULFILLED.items()):
    done = {"capitals": capitals, "words": words}
    places = {"capitals": 0, "words": 0}
    rows = []
    for item in ITEMS:
      text = answer(item, places[item.kind] < done[item.kind])
      places[item.kind] += 1
      rows.append({"prompt": item.prompt, "completion": text})
    for name in steps.TEMPERATURES:
      files.write_jsonl_atomic(
        plan.path("answers") / f"{model}_{name}.jsonl", rows
      )
    files.write_jsonl_atomic(
      plan.path("answers") / f"{model}_examples.jsonl",
      (
        {"prompt": prompt, "completion": f"{model}\nsays <b>{i}</b>"}
        for i, prompt in enumerate(example_prompts.PROMPTS)
      ),
    )
    scores = [[i + offset] for i in range(12)]
    table = dict.fromkeys(("gold", "rm", "length", "ended"), scores)
    directory = plan.path("measured") / model
    directory.mkdir(parents=True)
    files.write_json_atomic(
      directory / "answers.json",
      {
        "sampled": table | {"kl": [[0.5 * offset]] * 12},
        "greedy": table,
        "lm": {"nll": [30.0, 10.0], "weight": [10.0, 6.0]},
        "tasks": {"lambada": [1, 0, 0, 1]},
      },
    )
  for name in ("reward", "judge"):
    plan.path(name).mkdir()
    files.write_json_atomic(plan.path(name) / "complete.json", {"accuracy": 1})
  for name in plan.policies:
    plan.path(name).mkdir()
    files.write_jsonl_atomic(
      plan.path(name) / "metrics.jsonl",
      ({"step": i, "reward": i / 2, "kl": 0.1} for i in range(3)),
    )
  files.write_json_atomic(plan.path(steps.SECONDS), {"policy_init": 61.4})
  return plan


def test_values_and_changes_of_every_model(plan):
  results.write(plan)
  gathered = json.loads(plan.path(results.RESULTS).read_text())
  models = gathered["models"]
  assert list(models) == list(FULFILLED)
  for model, counts in FULFILLED.items():
    share = models[model]["fulfilled_greedy"]
    assert share["mean"] == pytest.approx(sum(counts) / 6)
    assert share["low"] <= share["mean"] <= share["high"]
    if model != results.START:
      change = models[model]["fulfilled_greedy_change"]["mean"]
      assert change == pytest.approx((sum(counts) - 1) / 6)
  assert "fulfilled_greedy_change" not in models[results.START]
  assert models["base"]["win_rate_sampled"]["mean"] == 0
  assert models["policy_init"]["win_rate_sampled"]["mean"] == 0.5
  assert models["sft"]["win_rate_sampled"]["mean"] == 1
  assert models["sft"]["kl_sampled"]["mean"] == 1
  assert "kl_greedy" not in models["sft"]
  assert models["sft"]["lm_loss"]["mean"] == pytest.approx(40 / 16)
  assert models["sft"]["lambada"]["mean"] == 0.5
  assert gathered["kinds"]["ppo_0"]["greedy"] == pytest.approx(
    {"capitals": 1.0, "words": 2 / 3}
  )
  assert gathered["curves"]["ppo_0"]["reward"] == [[0, 0.0], [1, 0.5], [2, 1.0]]


def test_tables_name_every_model_and_quote_its_answers(plan):
  results.write(plan)
  text = plan.path(results.TABLES).read_text()
  assert "| policy_init | 61 |" in text
  for model in FULFILLED:
    assert f"\n| {model} | " in text
    assert f"- {model}\n  > {model}\n  > says <b>0</b>\n" in text
  row = next(r for r in text.splitlines() if r.startswith("| ppo_0 |"))
  assert "0.833 [" in row and "0.667 [" in row


def test_the_picture_shows_every_model(plan):
  results.write(plan)
  svg = plan.path(results.PICTURE).read_text()
  assert svg.startswith("<svg") and "share of 6" in svg
  for model in FULFILLED:
    assert svg.count(f">{model}<") >= 3


def test_a_missing_answer_is_an_error(plan):
  path = plan.path("answers") / "sft_greedy.jsonl"
  path.write_text("".join(path.read_text().splitlines(True)[:-1]))
  with pytest.raises(UserError) as caught:
    results.write(plan)
  assert caught.value.code == "unanswered"
  assert not plan.path(results.RESULTS).exists()


def test_changes_are_between_the_same_prompts():
  values = {"lm_loss": np.array([2.0, 4.0, 6.0])}
  start = {"lm_loss": np.array([1.0, 3.0, 5.0])}
  for v in (values, start):
    v |= {f"judge_{name}": np.zeros(3) for name in steps.TEMPERATURES}
  change = results._summarize(values, start)["lm_loss_change"]
  assert change["mean"] == pytest.approx(1.0)
