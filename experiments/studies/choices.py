"""Measures choices that the paper made without showing their effect.

  make study STUDY=choices

Cost: 16 min with five seeds, shared runs included
(docs/results/results.json).
Result: gold falls by 0.026 without averaged weights, by 0.017 without a value
network from the RM and by 0.022 without whitened advantages; accuracy does not
depend measurably on K from 2 to 9.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.studies import reward_model
from instructgpt_jax import statistics
from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import OURS, Finding, Study
from instructgpt_jax.sweeps.jobs import Job

VARIANTS = {
  "as in the paper": {},
  "no averaged weights": {"ppo.ema_decay": 0.0},
  "value network not from the RM": {"ppo.value_from_reward": False},
  "advantages not whitened": {"ppo.whiten_advantages": False},
  "rewards whitened": {"ppo.whiten_rewards": True},
}
COMPLETIONS = (2, 3, 4, 6, 9)
LABELS = 1800  # completions looked at by labelers
A_STEP = 36  # of them in a batch, so that all K make as many updates


def ranked(f: SeedRuns, k: int) -> Job:
  """Builds the reward-model job with K completions a prompt, total constant."""
  return f.training_job(
    "reward",
    {
      "reward.max_completions": k,
      "reward.max_rankings": LABELS // k,
      "reward.batch_size": A_STEP // k,
      "optimizer.learning_rate": 2 * reward_model.recipe_rate(f),
    },
    init=f.reward_start(),
  )


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists PPO-ptx with one choice changed, and reward models over K."""
  runs = [f.ppo_job(changes) for changes in VARIANTS.values()]
  return [
    *runs,
    *(f.evaluation_job(r) for r in runs),
    *(ranked(f, k) for k in COMPLETIONS),
  ]


def learned(seeds: Sequence[SeedRuns]) -> str:
  """Says whether the best K learns more than each other one does."""
  values = {
    k: [reward_model.per_prompt(f, ranked(f, k), "correct") for f in seeds]
    for k in COMPLETIONS
  }
  means = {k: statistics.pooled_interval(v).mean for k, v in values.items()}
  best = max(means, key=lambda k: means[k])
  others = [
    k
    for k in COMPLETIONS
    if k != best
    and not analysis.is_above(
      statistics.pooled_interval([
        a - b for a, b in zip(values[best], values[k], strict=True)
      ])
    )
  ]  # fmt: skip
  if others:
    return (
      f"Of {LABELS} labeled completions as much is learned with any K from"
      f" {min(others + [best])} to {max(others + [best])}, as far as"
      f" {len(seeds)} seeds can tell:"
      f" {100 * min(means[k] for k in [*others, best]):.1f} to"
      f" {100 * means[best]:.1f} % of held-out pairs."
    )
  return (
    f"Of {LABELS} labeled completions the most is learned with K = {best}:"
    f" {100 * means[best]:.1f} % of held-out pairs."
  )


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Compares each variant's gold score with the default's; accuracy over K."""

  def of(name: str):
    return lambda f: f.evaluation_job(f.ppo_job(VARIANTS[name]))

  first = next(iter(VARIANTS))
  gold = {
    n: analysis.mean_interval(seeds, of(n), analysis.gold) for n in VARIANTS
  }
  gaps = {
    n: analysis.difference(seeds, of(n), of(first), analysis.gold)
    for n in list(VARIANTS)[1:]
  }
  right = [
    (
      k,
      statistics.pooled_interval([
        reward_model.per_prompt(f, ranked(f, k), "correct") for f in seeds
      ]),
    )
    for k in COMPLETIONS
  ]  # fmt: skip
  clear = [
    f"{n} {analysis.format_interval(x)}"
    for n, x in gaps.items()
    if analysis.is_above(x) or analysis.is_below(x)
  ]
  return Finding(
    None,
    ("Changes in gold score: " + "; ".join(clear) if clear
     else "No choice changes the gold score beyond its interval")
    + f". {learned(seeds)}",
    [
      Figure(
        "What each choice is worth",
        [
          Panel(
            "PPO-ptx",
            y_label="Gold score (0 to 1)",
            x_scale="category",
            series=[Series("", list(gold.items()), line=False)],
          ),
          Panel(
            "Reward model",
            x_label=f"K, with {LABELS} completions in all",
            y_label="Accuracy (share of held-out pairs)",
            series=[Series("reward model", right)],
          ),
        ],
      )
    ],
    [
      Table(
        "PPO-ptx with one thing changed",
        ["choice", "gold", "difference", "RM score", "KL, nats"],
        [
          (
            n,
            gold[n],
            gaps.get(n),
            analysis.mean_interval(seeds, of(n), analysis.rm),
            analysis.mean_interval(seeds, of(n), analysis.kl),
          )
          for n in VARIANTS
        ],
      ),
      Table(
        "Completions a prompt",
        ["K", "prompts", "accuracy"],
        [(str(k), LABELS // k, x) for k, x in right],
      ),
    ],
  )  # fmt: skip


STUDY = Study(
  name="choices",
  title="Choices that the paper does not show",
  question="What are averaging, value initialisation, whitening and K worth?",
  source="not in the paper",
  paper=(
    "The paper averages weights, starts the value network from the reward"
    " model and ranks 4 to 9 completions, without showing the alternatives;"
    " whitening is unstated."
  ),
  setup=(
    "PPO-ptx with one thing changed at a time, gold score on held-out prompts;"
    f" reward models from {LABELS} labeled completions, 2 to 9 of a prompt."
  ),
  criterion="None: these are findings of our own.",
  jobs=jobs,
  analyse=analyse,
  kind=OURS,
)
