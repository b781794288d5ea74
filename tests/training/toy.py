"""Files of a tiny language, and the flags of stages that learn it."""

from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

WORDS = tuple(f"{c}{v}" for c in "bdgklmnprs" for v in "aeio")
COLOURS = ("red", "green", "blue", "pink")
KINDS = ("demonstrations", "comparisons", "prompts", "pretraining")
MODEL = (
  "--preset=world",
  "--model.num_layers=1",
  "--model.d_model=16",
  "--model.num_heads=2",
  "--model.max_seq_len=24",
  "--tokenizer.vocab_size=64",
  "--data.max_prompt_tokens=10",
  "--data.max_response_tokens=6",
)
RUN = (
  "--run.log_every=1",
  "--run.save_every=5",
  "--run.tensorboard=false",
)
STAGES: Mapping[str, tuple[str, ...]] = {
  "pretrain": (
    "--pretrain.steps=30",
    "--pretrain.batch_size=8",
    "--pretrain.sequence=24",
    "--pretrain.eval_every=6",
    "--pretrain.microbatch=4",
  ),
  # So fast that it learns its demonstrations by heart: an early step is best.
  "sft": (
    "--sft.epochs=8",
    "--sft.batch_size=8",
    "--sft.dropout=0.2",
    "--optimizer.learning_rate=2e-2",
  ),
  "policy_init": (
    "--sft.epochs=6",
    "--sft.batch_size=8",
    "--sft.pretraining_fraction=0.2",
  ),
  "reward": (
    "--reward.batch_size=2",
    "--reward.epochs=3",
    "--reward.dropout=0.1",
  ),
  "ppo": (
    "--ppo.episodes=96",
    "--ppo.rollout_batch=8",
    "--ppo.minibatch=4",
    "--ppo.kl_coef=0.1",
    "--ppo.kl_target=2",
    "--ppo.kl_horizon=20",
    "--ppo.ema_decay=0.9",
  ),
  "ppo_ptx": (
    "--ppo.episodes=64",
    "--ppo.rollout_batch=8",
    "--ppo.minibatch=4",
    "--ppo.microbatch=2",
    "--ppo.inner_epochs=2",
    "--ppo.ptx_coef=2",
    "--ppo.ptx_ratio=2",
    "--ppo.ptx_microbatch=4",
    "--ppo.ptx_sequence=24",
    "--ppo.kl_target=2",
    "--ppo.kl_horizon=20",
    "--ppo.ema_decay=0.9",
  ),
}
# Sources of each stage, and the stage that it starts from.
READS = {
  "pretrain": ("pretraining",),
  "sft": ("demonstrations",),
  "policy_init": ("demonstrations", "pretraining"),
  "reward": ("comparisons", "demonstrations"),
  "ppo": ("prompts",),
  "ppo_ptx": ("prompts", "pretraining"),
}
STARTS = {
  "sft": "pretrain",
  "policy_init": "pretrain",
  "reward": "pretrain",
  "ppo": "sft",
  "ppo_ptx": "sft",
}


def write_lines(
  path: str | pathlib.Path, lines: Iterable[Mapping[str, Any]]
) -> str:
  """Writes a jsonl file, and returns its path."""
  text = "".join(json.dumps(line) + "\n" for line in lines)
  pathlib.Path(path).write_text(text, encoding="utf-8")
  return str(path)


def splits(train: int, valid: int) -> list[str]:
  """Returns the split of each record of a file."""
  return ["train"] * train + ["valid"] * valid


def write_data(directory: str | pathlib.Path) -> None:
  """Writes the four sources as KIND.jsonl, with explicit splits."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  rng = random.Random(0)

  def words(least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

  def prompt() -> str:
    return f"{rng.choice(COLOURS)} {words(1, 5)}"

  def write(kind: str, lines: Iterable[Mapping[str, Any]]) -> None:
    write_lines(directory / f"{kind}.jsonl", lines)

  every = " ".join((*WORDS, *COLOURS, "U:", "A:"))
  write(
    "pretraining",
    [{"text": every, "split": "train"}] * 2
    + [{"text": words(4, 18), "split": s} for s in splits(60, 8)],
  )
  write(
    "demonstrations",
    [
      {"prompt": prompt(), "completion": words(1, 4), "split": s}
      for s in splits(24, 6)
    ],
  )
  rankings = []
  for s in splits(20, 6):
    k = rng.randint(2, 4)
    ranks = rng.choices(range(1, k + 1), k=k)
    ranks[:2] = (1, 2)
    rankings.append(
      {
        "prompt": prompt(),
        "completions": [words(1, 4) for _ in range(k)],
        "ranks": ranks,
        "split": s,
      }
    )
  write("comparisons", rankings)
  write("prompts", [{"prompt": prompt(), "split": s} for s in splits(20, 4)])


def sources(data: str | pathlib.Path, *kinds: str) -> list[str]:
  """Returns the data flags of several kinds of source."""
  directory = pathlib.Path(data)
  return [f"--data.{kind}={directory / kind}.jsonl" for kind in kinds]


def nested(table: Mapping[str, Any]) -> dict[str, Any]:
  """Converts path → array to a tree of dicts."""
  tree: dict[str, Any] = {}
  for path, array in table.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = array
  return tree
