"""PPO overoptimises a reward model, and the kept policy is from before.

The reward model prefers long replies, the labelers replies of three words. So
the policy first gains by both, and then by the reward model alone. The judge
is trained on the labelers' rankings.
"""

import json
import random

import numpy as np
import pytest

from instructgpt_jax.checkpoint import checkpoints
from tests.training import results, toy

BEST = 3  # words


def reward(reply):
  return len(reply.split())


def gold(reply):
  return -abs(len(reply.split()) - BEST)


def write_rankings(path, preference):
  """Writes rankings of replies of 1 to 6 words by a preference."""
  rng = random.Random(1)

  def words(count):
    return " ".join(rng.choices(toy.WORDS, k=count))

  lines = []
  for split in toy.splits(200, 20):
    completions = [words(count) for count in rng.sample(range(1, 7), 4)]
    scores = [preference(c) for c in completions]
    ranks = [1 + sum(other > s for other in scores) for s in scores]
    prompt = f"{rng.choice(toy.COLOURS)} {words(rng.randint(1, 5))}"
    lines.append(
      {
        "prompt": prompt,
        "completions": completions,
        "ranks": ranks,
        "split": split,
      }
    )
  return toy.write_lines(path, lines)


def write_prompts(path):
  """Writes prompts, many of them to validate on."""
  rng = random.Random(2)
  lines = []
  for split in toy.splits(64, 64):
    words = " ".join(rng.choices(toy.WORDS, k=rng.randint(2, 5)))
    prompt = f"{rng.choice(toy.COLOURS)} {words}"
    lines.append({"prompt": prompt, "split": split})
  return toy.write_lines(path, lines)


@pytest.fixture(scope="module")
def overoptimized(stages, tmp_path_factory):
  path = tmp_path_factory.mktemp("overoptimized")
  for name, preference in (("reward", reward), ("judge", gold)):
    data = write_rankings(path / f"{name}.jsonl", preference)
    done = stages.run(
      "reward",
      *(f for f in stages.flags("reward") if "data.comparisons" not in f),
      f"--data.comparisons={data}",
      "--reward.batch_size=8",
      "--reward.epochs=8",
      "--reward.dropout=0",
      "--optimizer.learning_rate=1e-2",
      f"--workdir={path / name}",
    )
    assert done.status == 0, done.err
  done = stages.run(
    "ppo",
    *(
      f
      for f in stages.flags("ppo")
      if "--ppo.kl_" not in f and "ppo.reward_model" not in f
    ),
    f"--data.prompts={write_prompts(path / 'prompts.jsonl')}",
    f"--ppo.reward_model={path / 'reward'}",
    f"--ppo.judge={path / 'judge'}",
    "--ppo.episodes=448",
    "--ppo.rollout_batch=32",
    "--ppo.minibatch=32",
    "--ppo.kl_coef=0",
    "--ppo.warmup_iterations=0",
    "--ppo.ema_decay=0",
    "--optimizer.learning_rate=3e-3",
    "--value_optimizer.learning_rate=1e-2",
    "--ppo.eval_every=1",
    "--ppo.eval_samples=2",
    "--ppo.samples_every=1",
    "--ppo.sample_prompts=64",
    "--run.keep_best=valid_judge_score",
    f"--workdir={path / 'ppo'}",
  )
  assert done.status == 0, done.err
  return path / "ppo"


def test_gold_falls_while_reward_rises_and_an_earlier_policy_is_kept(
  overoptimized,
):
  rows = [r for r in results.metrics(overoptimized) if "valid_rm_score" in r]
  samples = [
    json.loads(line)
    for line in (overoptimized / "samples.jsonl").read_text().splitlines()
  ]
  scores = {r["step"]: r["valid_rm_score"] for r in rows}
  golds = {
    step: np.mean([gold(s["response"]) for s in samples if s["step"] == step])
    for step in scores
  }
  judged = {r["step"]: r["valid_judge_score"] for r in rows}
  selected, last = (
    checkpoints.load_model_info(overoptimized)["step"],
    max(scores),
  )
  assert 0 < selected < last
  # The reward model's score rises over the whole run; gold falls in the end.
  assert scores[0] < scores[selected] < scores[last] - 5
  assert golds[last] < min(golds[0], golds[selected]) - 0.5
  # The judge sees it, and chooses the selected policy.
  assert judged[selected] == max(judged.values())
  correlation = np.corrcoef(list(judged.values()), list(golds.values()))[0, 1]
  assert correlation > 0.8
