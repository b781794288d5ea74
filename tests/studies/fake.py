"""Fake runs: files like those of real ones."""

import hashlib
import json
import pathlib

import numpy as np

from instructgpt_jax.evaluation import reward_pairs
from instructgpt_jax.steps.reward_ensemble import KINDS
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.world import gold, requests

PROMPTS, ROWS, ITEMS, EPOCHS = 60, 20, 30, 16
FAMILIES = [list(requests.FAMILIES)[i % 15] for i in range(PROMPTS)]


def _rng(name):
  digest = hashlib.sha256(name.encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def answers(name, *, gold_mean=0.5, rm=0.0, kl=1.0, lm_loss=1.0, tasks=0.5,
            failures=0.3, samples_kept=0):  # fmt: skip
  """Makes an answers.json with the requested means, roughly."""
  rng = _rng(name)

  def near(mean, samples, spread=0.05):
    return (mean + spread * rng.standard_normal((PROMPTS, samples))).tolist()

  def table(samples):
    return {
      "gold": near(gold_mean, samples),
      "rm": near(rm, samples),
      "kl": near(kl, samples),
      "length": near(8, samples),
      "ended": near(1, samples, 0),
      "failures": {
        field: (rng.random((PROMPTS, samples)) < failures)
        .astype(float)
        .tolist()
        for field in gold.FAILURES
      },
    }

  values = {
    "prompts": [f"prompt {i}" for i in range(PROMPTS)],
    "families": FAMILIES,
    "sampled": table(2),
    "greedy": table(1),
    "lm": {
      "nll": (64 * (lm_loss + 0.02 * rng.standard_normal(ROWS))).tolist(),
      "weight": [64.0] * ROWS,
    },
    "tasks": {
      kind: (rng.random(ITEMS) < tasks).astype(float).tolist()
      for kind in ("translation", "reading", "sentiment", "facts")
    },
    "bias": (0.8 + 0.1 * rng.random(ITEMS)).tolist(),
    "prefix": "",
  }
  if samples_kept:
    values["kept"] = {
      "gold": near(gold_mean, samples_kept, 0.2),
      "rm": near(rm, samples_kept, 0.2),
    }
  return values


def held_out(name, *, loss=0.6, accuracy=0.6):
  """Makes a held_out.json of a reward model."""
  rng = _rng(name)
  pairs = rng.integers(5, 15, PROMPTS).astype(float)

  def part():
    return {
      "correct": (accuracy * pairs + 0.2 * rng.random(PROMPTS)).tolist(),
      "pairs": pairs.tolist(),
      "loss": (loss * pairs + 0.2 * rng.random(PROMPTS)).tolist(),
    }

  return {"pairs": part(), "left_out_pairs": part()}


def pair_counts(name, scorers, *, accuracy=0.6):
  """Makes a pairs.json, of a reward model or of probes."""
  rng = _rng(name)
  of_seed = _rng(name.partition("/")[0])  # all models are shown the same pairs

  def part(groups):
    counts = {}
    for group in groups:
      pairs = of_seed.integers(5, 15, PROMPTS).astype(float)
      noise = 0.2 * rng.random((2, PROMPTS))
      counts[group] = {
        "pairs": pairs.tolist(),
        "correct": (accuracy * pairs + noise[0]).tolist(),
        "ceiling": (0.75 * pairs + noise[1]).tolist(),
        "gold_pairs": pairs.tolist(),
        "gold_correct": (accuracy * pairs).tolist(),
      }
    return counts

  groups = [
    "all",
    "family sort",
    "source round_1",
    *(f"differs in {kind}" for kind in reward_pairs.DIFFERENCES[1:]),
    *(f"gold {gap}" for gap in reward_pairs.GAP_NAMES),
  ]
  return {
    scorer: {"held_out": part(groups), "train": part(["all"])}
    for scorer in scorers
  }


def write(directory, name, value):
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  (path / name).write_text(json.dumps(value))


def run(root, job, chosen=None):
  """Writes what a job would leave; `chosen` overrides the numbers."""
  directory, chosen = pathlib.Path(job.workdir(root)), dict(chosen or {})
  if job.experiment == "evaluate":
    samples_kept = int(job.flags.get("measure.samples_kept", 0))
    write(
      directory,
      "answers.json",
      answers(job.name, samples_kept=samples_kept, **chosen),
    )
  elif job.experiment == "reward_pairs":
    probed = job.name.split("/")[2] in ("pretrain", "policy_init")
    scorers = ("labels", "gold", "surface", "claims") if probed else ("model",)
    if "pairs.ensemble" in job.flags:
      scorers += tuple(map(reward_pairs.ensemble_scorer, KINDS))
    write(directory, "pairs.json", pair_counts(job.name, scorers, **chosen))
  elif job.experiment == "reward":
    write(directory, "held_out.json", held_out(job.name, **chosen))
  elif job.experiment == "sft":
    spread = 0.01 * _rng(job.workdir("")).standard_normal()  # between seeds
    lines = [
      {"step": e, "valid_loss": 1.0 + 0.01 * abs(e - 2),
       "valid_rm_score": (0.1 + spread) * e}
      for e in range(1, EPOCHS + 1)
    ]  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text(
      "".join(json.dumps(line) + "\n" for line in lines)
    )
  elif job.experiment == "pipeline":
    write(directory / "reward", "held_out.json", held_out(job.name))
    write(directory / "reward", "complete.json", {})
  write(directory, "complete.json", {})


def families(scale, root):
  """Returns the runs of each seed, for the analyses."""
  runs = [SeedRuns(scale, seed, str(root)) for seed in scale.seeds]
  for family in runs:
    family.__dict__["vocab_size"] = 330
  return runs
