"""Compares PPO's starts: epochs and share of pretraining data (figure 37).

  make study STUDY=policy_init

Cost: 18 min with five seeds, shared runs included
(docs/results/results.json).
Result: reproduced. The best and the worst of 6 starts end 0.04 apart in gold
score, less than half of the 0.09 that PPO-ptx gains.
"""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import Finding, Study
from instructgpt_jax.sweeps.jobs import Job

EPOCHS = (1, 2)
FRACTIONS = (0.0, 0.1, 0.5)
GRID = tuple((e, x) for e in EPOCHS for x in FRACTIONS)
DEFAULT = (2, 0.1)
PAPER = {0.0: 3.84, 0.1: 4.01, 0.5: 3.84}


def start(f: SeedRuns, epochs: int, fraction: float) -> Job | str:
  """Builds the job of a policy initialisation."""
  if (epochs, fraction) == DEFAULT:
    return "policy_init"
  return f.training_job(
    "policy_init",
    {"sft.epochs": epochs, "sft.pretraining_fraction": fraction},
    init="pretrain",
  )


def run(f: SeedRuns, epochs: int, fraction: float) -> Job:
  """Builds the job of PPO-ptx from one start."""
  label = f"from={epochs}x{fraction:g}"
  first = start(f, epochs, fraction)
  return f.ppo_job(init=first, label="" if isinstance(first, str) else label)


def measured(f: SeedRuns, epochs: int, fraction: float) -> Job:
  """Builds the evaluation of PPO-ptx from one start."""
  return f.evaluation_job(
    run(f, epochs, fraction), start=start(f, epochs, fraction)
  )


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Starts, their PPO-ptx and what is measured."""
  starts = [s for g in GRID if isinstance(s := start(f, *g), Job)]
  return [
    *starts,
    *(run(f, *g) for g in GRID),
    *(measured(f, *g) for g in GRID),
    f.evaluation_job("policy_init"),
  ]


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Compares gold scores over the grid with PPO-ptx's gain."""

  def at(point):
    return lambda f: measured(f, *point)

  def before(f: SeedRuns) -> Job:
    return f.evaluation_job("policy_init")

  gold = {g: analysis.mean_interval(seeds, at(g), analysis.gold) for g in GRID}
  gain = analysis.difference(seeds, at(DEFAULT), before, analysis.gold)
  best = max(GRID, key=lambda g: gold[g].mean)
  worst = min(GRID, key=lambda g: gold[g].mean)
  spread = analysis.difference(seeds, at(best), at(worst), analysis.gold)
  won = spread.mean < 0.5 * gain.mean and analysis.is_above(gain)
  return Finding(
    won,
    f"The best and the worst of {len(GRID)} starts end"
    f" {analysis.format_interval(spread, 2)}"
    f" apart in gold score; PPO-ptx itself gains"
    f" {analysis.format_interval(gain, 2)}.",
    [
      Figure(
        "Quality by start",
        [
          Panel(
            "Here",
            x_label="Share of pretraining rows",
            y_label="Gold score (0 to 1)",
            series=[
              Series(
                f"{e} epoch{'s' * (e > 1)}",
                [(x, gold[e, x]) for x in FRACTIONS],
              )
              for e in EPOCHS
            ],
            lines=[
              (analysis.mean_interval(seeds, before, analysis.gold).mean,
               "before PPO-ptx")
            ],
          ),
          Panel(
            "Paper",
            x_label="Share of pretraining rows",
            y_label="Likert (1 to 7)",
            series=[Series("PPO-ptx", list(PAPER.items()), role="ppo_ptx")],
          ),
        ],
      )
    ],
    [
      Table(
        "By start",
        ["epochs × share", "gold", "LM loss"],
        [
          (
            f"{e} × {x:g}",
            gold[e, x],
            analysis.mean_interval(seeds, at((e, x)), analysis.lm_loss),
          )
          for e, x in GRID
        ],
      )
    ],
  )  # fmt: skip


STUDY = Study(
  name="policy_init",
  title="PPO-ptx hardly depends on its start",
  question="How much do epochs and pretraining data of the policy's"
  " initialisation matter?",
  source="appendix E.8, figure 37",
  paper=(
    "1 or 2 epochs on demonstrations with 0, 10 or 50 % pretraining data, then"
    " PPO-ptx: Likert 3.84 to 4.01, within the intervals."
  ),
  setup=(
    "The same six starts, then PPO-ptx from each, with its own start as the"
    " reference; gold score on held-out prompts."
  ),
  criterion=(
    "The gold scores of the best and the worst start differ by less than half"
    " of what PPO-ptx gains over the default start."
  ),
  jobs=jobs,
  analyse=analyse,
)
