"""Measures what RLHF practice does against a weak reward model.

  make study STUDY=weak_rewards

Ensembles (arXiv:2310.02743), label smoothing, margins of graded preferences
(arXiv:2307.09288, section 3.2.2), a reward model larger than the policy, as the
paper's 6B for 1.3B, and rankings of fresh answers in each round: each alone,
beside the recipe.

Cost: 90 min with five seeds, shared runs included
(docs/results/results.json).
Result: the mean of three reward models orders 1.1 points more of held-out
pairs, mean minus deviation 0.7 and margins 0.3 more, label smoothing 0.3 less.
Nothing changes PPO-ptx's gold score measurably.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.studies import model_size
from experiments.studies import reward_limits_runs as limits
from experiments.studies.reward_limits_runs import Model
from instructgpt_jax import statistics
from instructgpt_jax.evaluation import reward_pairs
from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.statistics import Interval
from instructgpt_jax.steps import reward_ensemble
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import OURS, Finding, Study
from instructgpt_jax.sweeps.jobs import Job

MEMBERS = 3  # reward models of an ensemble; the first is the recipe's
SMOOTHING = 0.1
RECIPE = "the recipe"
ENSEMBLES = {
  f"ensemble: {kind.replace('_', ' ')}": kind for kind in reward_ensemble.KINDS
}


def member(f: SeedRuns, number: int) -> Model:
  """Builds the job of an ensemble's member, which differs by its seed."""
  if not number:
    return "reward"
  changes = {"seed": member_seed(f, number)}
  return f.training_job("reward", changes, init=member_start(f, number))


def member_start(f: SeedRuns, number: int) -> Model:
  """Returns what a member starts from.

  Members also differ in their training on public comparisons, by its seed.
  """
  start = f.reward_start()
  if not number or start != "reward_init":
    return start
  return f.reward_init_job(
    f.language_start(),
    label=f"public,member={number}",
    extra_flags={"seed": member_seed(f, number)},
  )


def member_seed(f: SeedRuns, number: int) -> int:
  """Returns the seed of a member's training."""
  return f.seed + 100 * number


def members(f: SeedRuns) -> list[Model]:
  """Lists the members of the ensemble."""
  return [member(f, number) for number in range(MEMBERS)]


def one_round(f: SeedRuns) -> Job:
  """Builds the job of as many rankings, all of the first round's answers."""
  changes = {
    "labeling.rounds": 1,
    "labeling.prompts": limits.num_rankings(f),
  }
  return f.labels_job(changes, "one_round")


def larger_size(f: SeedRuns) -> str:
  """Returns the size above the recipe's."""
  return limits.larger_sizes(f)[0]


def single_models(f: SeedRuns) -> dict[str, Model]:
  """Returns the reward models that are no ensemble, by name."""
  answers = one_round(f)

  def changed(changes: Mapping[str, object]) -> Job:
    return f.training_job("reward", changes, init=f.reward_start())

  return {
    RECIPE: "reward",
    f"label smoothing {SMOOTHING:g}": changed(
      {"reward.label_smoothing": SMOOTHING}
    ),
    "margins by grade": changed({"reward.margin": "grade"}),
    "a larger network": limits.by_size(f, larger_size(f)),
    "all rankings in one round": f.training_job(
      "reward",
      init=f.reward_start(),
      label="one_round",
      extra_flags={"data.comparisons": f.rankings_flag(answers, 1)},
      needs=[answers],
    ),
  }


def names(f: SeedRuns) -> list[str]:
  """Lists what is compared."""
  return [*single_models(f), *ENSEMBLES]


def run(f: SeedRuns, name: str) -> Job:
  """Builds the job of PPO-ptx against a reward model, or an ensemble."""
  if name == RECIPE:
    return f.ppo_job()
  if name in ENSEMBLES:
    return f.training_job(
      "ppo_ptx",
      {"ppo.reward_ensemble": ENSEMBLES[name]},
      init="policy_init",
      extra_flags={
        "ppo.reward_model": ",".join(f.directory(m) for m in members(f))
      },
      needs=[m for m in members(f) if isinstance(m, Job)],
    )
  model = single_models(f)[name]
  assert isinstance(model, Job)  # only the recipe's is a shared stage
  label = model.name.rpartition("/")[2]
  return f.ppo_job(reward=model, label=f"rm={label}")


def measured(f: SeedRuns, name: str) -> Job:
  """Builds the evaluation of PPO-ptx against a reward model."""
  return f.evaluation_job(run(f, name))


def pairs(f: SeedRuns, name: str) -> Job:
  """Builds the job that measures a reward model on held-out pairs."""
  if name in ENSEMBLES:
    return f.pairs_job("reward", limits.held_out(f), ensemble=members(f)[1:])
  return f.pairs_job(single_models(f)[name], limits.held_out(f))


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists reward models, PPO-ptx against each, and measurements."""
  size = larger_size(f)
  models: list[Model] = [
    *model_size.starts(f, size),
    limits.size_start(f, size),
    *(member_start(f, number) for number in range(MEMBERS)),
    *members(f),
    *single_models(f).values(),
  ]
  listed = [
    limits.held_out(f),
    one_round(f),
    *(model for model in models if isinstance(model, Job)),
    *(run(f, name) for name in names(f)),
    *(measured(f, name) for name in names(f)),
    *(pairs(f, name) for name in names(f)),
  ]
  return list({job.name: job for job in listed}.values())


def right(f: SeedRuns, name: str) -> np.ndarray:
  """Returns [prompts] whose mean is the share of held-out pairs."""
  scorer = reward_pairs.MODEL
  if name in ENSEMBLES:
    scorer = reward_pairs.ensemble_scorer(ENSEMBLES[name])
  parts = f.pair_counts(pairs(f, name))[scorer]
  counts = parts[reward_pairs.HELD_OUT][reward_pairs.ALL]
  return statistics.linearize_ratio(counts["correct"], counts["pairs"])


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Compares accuracy and gold scores with the recipe's."""
  listed = names(seeds[0])
  accuracy = {
    n: statistics.pooled_interval([right(f, n) for f in seeds]) for n in listed
  }
  gained = {
    n: statistics.pooled_interval(
      [right(f, n) - right(f, RECIPE) for f in seeds]
    )
    for n in listed[1:]
  }

  def of(name: str):
    return lambda f: measured(f, name)

  scores = {"1": analysis.gold, "0": analysis.greedy_gold}
  means = {
    (n, t): analysis.mean_interval(seeds, of(n), value)
    for n in listed
    for t, value in scores.items()
  }
  gains = {
    (n, t): analysis.difference(seeds, of(n), of(RECIPE), value)
    for n in listed[1:]
    for t, value in scores.items()
  }
  return Finding(
    None,
    _sentence(gained, gains),
    [
      Figure(
        "Differences from the recipe's reward model",
        [
          Panel(
            "Reward model",
            y_label="Accuracy (share of held-out pairs)",
            x_scale="category",
            lines=[(0.0, RECIPE)],
            series=[Series("", list(gained.items()), line=False)],
          ),
          Panel(
            "PPO-ptx",
            y_label="Gold score (0 to 1)",
            x_scale="category",
            lines=[(0.0, RECIPE)],
            series=[
              Series(
                f"temperature {t}",
                [(n, gains[n, t]) for n in listed[1:]],
                line=False,
              )
              for t in scores
            ],
          ),
        ],
      )
    ],
    [
      Table(
        "One thing changed at a time, with differences from the recipe",
        ["reward model", "accuracy", "difference", "gold at temperature 1",
         "difference", "gold at temperature 0", "difference", "KL, nats"],
        [
          (
            n,
            accuracy[n],
            gained.get(n),
            means[n, "1"],
            gains.get((n, "1")),
            means[n, "0"],
            gains.get((n, "0")),
            analysis.mean_interval(seeds, of(n), analysis.kl),
          )
          for n in listed
        ],
      )
    ],
  )  # fmt: skip


def _sentence(
  gained: Mapping[str, Interval], gains: Mapping[tuple[str, str], Interval]
) -> str:
  """States what changes accuracy or gold score beyond the interval."""
  clear = [
    f"{name}: {analysis.format_interval(x)} in {what}"
    for (name, what), x in (
      *(((n, "accuracy"), x) for n, x in gained.items()),
      *(
        ((n, f"gold score at temperature {t}"), x)
        for (n, t), x in gains.items()
      ),
    )
    if analysis.is_above(x) or analysis.is_below(x)
  ]
  if not clear:
    return "Nothing changes accuracy or gold score beyond the interval."
  return "Beyond the interval: " + "; ".join(clear) + "."


STUDY = Study(
  name="weak_rewards",
  title="What practice does against weak reward models",
  question="What are ensembles, smoothed labels, margins, a larger reward model"
  " and fresh answers in each round worth?",
  source="section 3.5; the options are in the literature after the paper",
  paper=(
    "One reward model of 6B for policies of 1.3B to 175B; most comparisons are"
    " of supervised policies, some of PPO policies."
  ),
  setup=(
    f"One thing changed at a time; ensembles have {MEMBERS} models of different"
    " seeds. Accuracy on the same held-out pairs, and gold scores of PPO-ptx"
    " against each reward model."
  ),
  criterion="None: these are findings of our own.",
  jobs=jobs,
  analyse=analyse,
  kind=OURS,
)
