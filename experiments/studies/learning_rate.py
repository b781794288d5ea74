"""Finds where PPO diverges, with and without pretraining gradients (figure 38).

  make study STUDY=learning_rate

Cost: 19 min with five seeds, shared runs included
(docs/results/results.json).
Result: reproduced. PPO gains nothing at rates of 0.001 and above, PPO-ptx only
at 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import Finding, Study
from instructgpt_jax.sweeps.jobs import Job

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
KINDS = {"PPO": 0.0, "PPO-ptx": None}  # γ; None is the recipe's
PAPER_GRID = (2.55e-6, 3.74e-6, 5.49e-6, 8.05e-6, 1.18e-5, 1.74e-5, 2.55e-5)
PAPER_PTX = (3.92, 3.95, 3.94, 3.93, 4.31, 4.18, 4.10)
PAPER_PPO = (3.92, 4.05, 3.83, 3.73)


def run(f: SeedRuns, kind: str, rate: float) -> Job:
  """Builds the job of PPO or PPO-ptx at one learning rate of the policy."""
  changes: dict[str, float] = {"optimizer.learning_rate": rate}
  gamma = KINDS[kind]
  if gamma is not None:
    changes["ppo.ptx_coef"] = gamma
  return f.ppo_job(changes)


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists runs and measurements, and the start's."""
  runs = [run(f, kind, rate) for kind in KINDS for rate in GRID]
  return [
    *runs,
    *(f.evaluation_job(r) for r in runs),
    f.evaluation_job("policy_init"),
  ]


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Computes the highest learning rate at which each still gains."""

  def at(kind: str, rate: float):
    return lambda f: f.evaluation_job(run(f, kind, rate))

  def before(f: SeedRuns) -> Job:
    return f.evaluation_job("policy_init")

  points = [(kind, rate) for kind in KINDS for rate in GRID]
  gold = {
    p: analysis.mean_interval(seeds, at(*p), analysis.gold) for p in points
  }
  gain = {
    p: analysis.difference(seeds, at(*p), before, analysis.gold) for p in points
  }
  drift = {
    p: analysis.mean_interval(seeds, at(*p), analysis.kl) for p in points
  }
  lost = {
    kind: [rate for rate in GRID if not analysis.is_above(gain[kind, rate])]
    for kind in KINDS
  }
  fall = {
    kind: max(gold[kind, r].mean for r in GRID) - gold[kind, GRID[-1]].mean
    for kind in KINDS
  }
  won = (
    bool(lost["PPO"])
    and len(lost["PPO-ptx"]) <= len(lost["PPO"])
    and fall["PPO-ptx"] < fall["PPO"]
  )
  start = analysis.mean_interval(seeds, before, analysis.gold).mean

  def rates(kind: str) -> str:
    shown = ", ".join(f"{r:g}" for r in lost[kind])
    return shown or "none"

  return Finding(
    won,
    f"No gain over the start with PPO at {rates('PPO')}, with PPO-ptx at"
    f" {rates('PPO-ptx')}; at the highest rate they lose {fall['PPO']:.2f} and"
    f" {fall['PPO-ptx']:.2f} in gold score.",
    [
      Figure(
        "Quality over the policy's learning rate",
        [
          Panel(
            "Here",
            x_label="Learning rate",
            y_label="Gold score (0 to 1)",
            x_scale="log",
            lines=[(start, "before PPO")],
            series=[
              Series(
                kind, [(r, gold[kind, r]) for r in GRID],
                role="ppo_ptx" if kind == "PPO-ptx" else "ppo",
              )
              for kind in KINDS
            ],
          ),
          Panel(
            "Paper",
            x_label="Learning rate",
            y_label="Likert (1 to 7)",
            x_scale="log",
            series=[
              Series("PPO", zip(PAPER_GRID, PAPER_PPO, strict=False),
                     role="ppo"),
              Series("PPO-ptx", zip(PAPER_GRID, PAPER_PTX, strict=True),
                     role="ppo_ptx"),
            ],
          ),
        ],
        "In the paper PPO without pretraining gradients diverged above"
        " 8.05e-6.",
      )
    ],
    [
      Table(
        "Over the learning rate",
        ["learning rate", "PPO, gold", "PPO, KL in nats", "PPO-ptx, gold",
         "PPO-ptx, KL in nats"],
        [
          (f"{r:g}", gold["PPO", r], drift["PPO", r], gold["PPO-ptx", r],
           drift["PPO-ptx", r])
          for r in GRID
        ],
      )
    ],
  )  # fmt: skip


STUDY = Study(
  name="learning_rate",
  title="Pretraining gradients make PPO robust to its learning rate",
  question="At which learning rates does PPO diverge, with and without"
  " pretraining gradients?",
  source="appendix E.9, figure 38",
  paper=(
    "Seven learning rates from 2.55e-6 to 2.55e-5 at 1.3B. Without pretraining"
    " gradients everything above 8.05e-6 diverged; PPO-ptx is much less"
    " sensitive."
  ),
  setup=(
    f"Rates of {', '.join(f'{r:g}' for r in GRID)} for PPO and PPO-ptx; gold"
    " score on held-out prompts, against the policy's start."
  ),
  criterion=(
    "At some rate PPO no longer gains over its start (the 95 % interval of the"
    " paired difference is not above 0), PPO-ptx fails at no more rates than"
    " PPO, and from its best to the highest rate it loses less gold score."
  ),
  jobs=jobs,
  analyse=analyse,
)
