"""Which SFT checkpoint to keep (appendix C.1).

make study STUDY=sft_epochs
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.runs import files
from instructgpt_jax.studies import gather
from instructgpt_jax.studies.family import Family
from instructgpt_jax.studies.study import Finding, Study
from instructgpt_jax.sweeps.jobs import Job

EPOCHS = 16
CHOICES = {"loss": "validation loss", "reward": "RM score", "last": "the last"}


def run(f: Family, choice: str) -> Job:
  """16 epochs, the checkpoint kept by one measure."""
  return f.run(
    "sft",
    {"sft.epochs": EPOCHS, "sft.select_by": choice},
    init="pretrain",
  )


def jobs(f: Family) -> Sequence[Job]:
  """The same training thrice, with another checkpoint kept."""
  runs = [run(f, choice) for choice in CHOICES]
  return [*runs, *(f.measured(r) for r in runs)]


def curve(f: Family, metric: str) -> list[float]:
  """A metric after each epoch."""
  path = os.path.join(f.folder(run(f, "reward")), "metrics.jsonl")
  lines = map(json.loads, files.read_text(path).splitlines())
  return [line[metric] for line in lines if metric in line]


def analyse(families: Sequence[Family]) -> Finding:
  """When each measure is best, and which choice has the better answers."""
  loss, score = (
    np.array([curve(f, metric) for f in families])
    for metric in ("valid_loss", "valid_rm_score")
  )
  least = loss.argmin(axis=1)
  rises = [float(s[-1] - s[at]) for s, at in zip(score, least, strict=True)]
  later = gather.over_seeds(rises)
  gold = {
    c: gather.interval(
      families, lambda f, c=c: f.measured(run(f, c)), gather.gold
    )
    for c in CHOICES
  }
  gain = gather.gap(
    families,
    lambda f: f.measured(run(f, "reward")),
    lambda f: f.measured(run(f, "loss")),
    gather.gold,
  )
  longer = gather.gap(
    families,
    lambda f: f.measured(run(f, "last")),
    lambda f: f.measured(run(f, "loss")),
    gather.gold,
  )
  early = int(np.max(least)) + 1
  won = None  # one seed has no interval
  change = f"{rises[0]:+.2f} (one seed)"
  if later is not None:
    won = early <= EPOCHS // 2 and gather.above(later) and gather.above(gain)
    change = gather.signed(later)
  epochs = range(1, EPOCHS + 1)

  def series(values: np.ndarray) -> list:
    return [
      (e, gather.over_seeds(values[:, e - 1]) or float(values[0, e - 1]))
      for e in epochs
    ]

  return Finding(
    won,
    f"The loss is least after at most {early} epoch{'s' * (early > 1)}; the RM"
    f" score then changes by {change} to the end. Its choice is"
    f" {gather.signed(gain)} in gold score against the loss's.",
    [
      Figure(
        "Sixteen epochs on demonstrations",
        [
          Panel(
            "Validation loss",
            x_label="Epochs",
            y_label="Loss (nats a token)",
            series=[Series("SFT", series(loss), role="sft")],
          ),
          Panel(
            "RM score",
            x_label="Epochs",
            y_label="RM score (logits)",
            series=[Series("SFT", series(score), role="sft")],
          ),
        ],
        "The paper prints no numbers. Intervals are over seeds.",
      )
    ],
    [
      Table(
        "Checkpoint kept by",
        ["measure", "gold"],
        [(title, gold[c]) for c, title in CHOICES.items()],
      )
    ],
    [
      "The last checkpoint, after the loss has risen, is"
      f" {gather.signed(longer)} in gold score against the one with the least"
      " loss."
    ],
  )


STUDY = Study(
  name="sft_epochs",
  title="SFT overfits in loss but not in quality",
  question="Which epoch of SFT gives the best answers?",
  source="section 3.5, appendix C.1",
  paper=(
    "SFT overfits on validation loss after one epoch of 16; more epochs still"
    " help the RM score and human ratings, so the checkpoint is chosen by RM"
    " score."
  ),
  setup=(
    f"{EPOCHS} epochs; after each, validation loss and the RM score of answers"
    " to validation prompts; gold score of the checkpoints that each chooses."
  ),
  criterion=(
    "The validation loss is least in the first half of the epochs, the RM score"
    " is higher at the end than there, and the checkpoint chosen by RM score"
    " has a higher gold score than that chosen by loss, with whole 95 %"
    " intervals."
  ),
  jobs=jobs,
  analyse=analyse,
)
