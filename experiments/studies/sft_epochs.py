"""Tests which SFT checkpoint is best (appendix C.1).

  make study STUDY=sft_epochs

Cost: 7 min with five seeds, shared runs included
(docs/results/results.json).
Result: not reproduced. Choosing the checkpoint by RM score instead of loss
changes the gold score by +0.03 [-0.01, 0.07].
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.runs import files
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import Finding, Study
from instructgpt_jax.sweeps.jobs import Job

EPOCHS = 16
CHOICES = {"loss": "validation loss", "reward": "RM score", "last": "the last"}


def run(f: SeedRuns, choice: str) -> Job:
  """Builds the job of 16 epochs; one measure chooses the checkpoint."""
  return f.training_job(
    "sft",
    {"sft.epochs": EPOCHS, "sft.select_by": choice},
    init="pretrain",
  )


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists the same training three times, each with another checkpoint."""
  runs = [run(f, choice) for choice in CHOICES]
  return [*runs, *(f.evaluation_job(r) for r in runs)]


def curve(f: SeedRuns, metric: str) -> list[float]:
  """Reads a metric after each epoch."""
  path = os.path.join(f.directory(run(f, "reward")), "metrics.jsonl")
  lines = map(json.loads, files.read_text(path).splitlines())
  return [line[metric] for line in lines if metric in line]


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Computes each measure's best epoch and its choice's gold score."""
  loss, score = (
    np.array([curve(f, metric) for f in seeds])
    for metric in ("valid_loss", "valid_rm_score")
  )
  least = loss.argmin(axis=1)
  rises = [float(s[-1] - s[at]) for s, at in zip(score, least, strict=True)]
  later = analysis.seeds_interval(rises)
  gold = {
    c: analysis.mean_interval(
      seeds, lambda f, c=c: f.evaluation_job(run(f, c)), analysis.gold
    )
    for c in CHOICES
  }
  gain = analysis.difference(
    seeds,
    lambda f: f.evaluation_job(run(f, "reward")),
    lambda f: f.evaluation_job(run(f, "loss")),
    analysis.gold,
  )
  longer = analysis.difference(
    seeds,
    lambda f: f.evaluation_job(run(f, "last")),
    lambda f: f.evaluation_job(run(f, "loss")),
    analysis.gold,
  )
  early = int(np.max(least)) + 1
  won = None  # one seed has no interval
  change = f"{rises[0]:+.2f} (one seed)"
  if later is not None:
    won = (
      early <= EPOCHS // 2
      and analysis.is_above(later)
      and analysis.is_above(gain)
    )
    change = analysis.format_signed(later)
  epochs = range(1, EPOCHS + 1)

  def series(values: np.ndarray) -> list:
    return [
      (e, analysis.seeds_interval(values[:, e - 1]) or float(values[0, e - 1]))
      for e in epochs
    ]

  return Finding(
    won,
    f"The loss is least after at most {early} epoch{'s' * (early > 1)}; the RM"
    f" score then changes by {change} to the end. Its choice is"
    f" {analysis.format_signed(gain)} in gold score against the loss's.",
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
      f" {analysis.format_signed(longer)}"
      f" in gold score against the one with the least"
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
