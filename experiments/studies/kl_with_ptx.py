"""Measures the effect of the KL coefficient β in PPO-ptx (figure 36).

  make study STUDY=kl_with_ptx

Cost: 11 min with five seeds, shared runs included
(docs/results/results.json).
Result: not reproduced. The best β is 0.12, 0.07 in gold score above β = 2, but
not measurably above β = 0, where seeds differ widely.
"""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import Finding, Study
from instructgpt_jax.sweeps.jobs import Job

GRID = (0.0, 0.03, 0.12, 0.5, 2.0)
PAPER_GRID = (0.0, 7.5e-4, 0.0104, 0.02, 0.03, 0.144, 2.0)
PAPER_LIKERT = (2.14, 3.03, 4.12, 3.90, 3.74, 3.74, 3.12)


def run(f: SeedRuns, coefficient: float) -> Job:
  """Builds the job of PPO-ptx at one β."""
  return f.ppo_job({"ppo.kl_coef": coefficient})


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists a run and its measurement at each β."""
  runs = [run(f, b) for b in GRID]
  return [*runs, *(f.evaluation_job(r) for r in runs)]


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Computes the gold score over β."""

  def at(coefficient: float):
    return lambda f: f.evaluation_job(run(f, coefficient))

  def over(value):
    return [(b, analysis.mean_interval(seeds, at(b), value)) for b in GRID]

  gold, reward, kl, greedy = map(
    over,
    (
      analysis.gold,
      analysis.rm,
      analysis.kl,
      analysis.greedy_gold,
    ),
  )
  best = max(gold[1:-1], key=lambda item: item[1].mean)[0]
  options = {b: at(b) for b in GRID[1:-1]}
  chosen = analysis.choose_options(seeds, options, analysis.gold)
  low, high = (
    analysis.difference_from_chosen(
      seeds, at(end), options, chosen, analysis.gold
    )
    for end in (GRID[0], GRID[-1])
  )
  won = analysis.is_below(low) and analysis.is_below(high)
  return Finding(
    won,
    f"The best β is {best:g}. Against the β that is best on the other seeds,"
    " β = 0 is "
    f"{analysis.format_interval(low, 2)} in gold score, and β = {GRID[-1]:g} is"
    f" {analysis.format_interval(high, 2)}.",
    [
      Figure(
        "Quality over β, with pretraining gradients",
        [
          Panel(
            "Here",
            x_label="β",
            y_label="Gold score (0 to 1)",
            x_scale="log",
            series=[
              Series("Temperature 1", gold, role="ppo_ptx"),
              Series("Temperature 0", greedy),
            ],
          ),
          Panel(
            "Paper",
            x_label="β",
            y_label="Likert (1 to 7)",
            x_scale="log",
            series=[
              Series(
                "PPO-ptx",
                [
                  (b, y, y - 0.25, y + 0.25)
                  for b, y in zip(PAPER_GRID, PAPER_LIKERT, strict=True)
                ],
                role="ppo_ptx",
              )
            ],
          ),
        ],
      )
    ],
    [
      Table(
        "Over β",
        ["β", "gold", "gold, temperature 0", "RM score", "KL, nats"],
        [
          (f"{b:g}", y, g, r, k)
          for (b, y), (_, g), (_, r), (_, k) in zip(
            gold, greedy, reward, kl, strict=True
          )
        ],
      )
    ],
  )


STUDY = Study(
  name="kl_with_ptx",
  title="The KL penalty has a best strength",
  question="How strong should the KL penalty of PPO-ptx be?",
  source="appendix E.7, figure 36",
  paper=(
    "β of PPO-ptx from 0 to 2 at 1.3B, judged on the Likert scale: 2.1 at 0, a"
    " best of 4.1 at about 0.01 to 0.02, and 3.1 at 2."
  ),
  setup=(
    f"β of {', '.join(f'{b:g}' for b in GRID)}, all else as in PPO-ptx; gold"
    " score on held-out prompts."
  ),
  criterion=(
    "The best β inside the grid has a higher gold score than β = 0 and than"
    " the largest β, with whole 95 % intervals of the paired differences. Which"
    " β is best for a seed is chosen on the other seeds (with one seed, on half"
    " of its prompts) and not on what is tested."
  ),
  jobs=jobs,
  analyse=analyse,
)
