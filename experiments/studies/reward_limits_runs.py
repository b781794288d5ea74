"""The runs of `reward_limits`: rankings, reward models, and measurements."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from experiments.studies import model_size
from instructgpt_jax.studies.scale import RECIPE_SIZE
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.sweeps.jobs import Job

RANKINGS = (0.25, 1, 4, 16)  # times the recipe's
TOKENS = (0.25, 1, 4)  # of pretraining, times the recipe's
NOISES = (0.0, 1.0, 2.0)  # beside the recipe's
COMPLETIONS = (2, 4)  # K, beside the recipe's
PUBLIC = (0, 0.25, 1, 4)  # public comparisons, times the recipe's
HELD_OUT_PROMPTS = 4  # times the recipe's
ADAPTER_RANK = 8
Model = Job | str  # a reward model: a job, or a shared stage


# Rankings.


def held_out(f: SeedRuns) -> Job:
  """Builds the job of the rankings that every model is measured on."""
  count = HELD_OUT_PROMPTS * f.scale.value("labeling.valid_prompts")
  changes = {"labeling.prompts": 1, "labeling.valid_prompts": count}
  return f.labels_job(changes, "held_out")


def pool(f: SeedRuns) -> Job:
  """Builds the job of more rankings than the recipe has."""
  count = int(max(RANKINGS) * f.scale.value("labeling.prompts"))
  changes = {"labeling.prompts": count, "labeling.valid_prompts": 1}
  return f.labels_job(changes, "pool")


def relabeled(f: SeedRuns, noise: float) -> Job:
  """Builds the job of the recipe's answers, ranked with another noise."""
  return f.labels_job({"labeling.noise": noise}, f"noise={noise:g}")


def num_rankings(f: SeedRuns, multiple: float = 1) -> int:
  """Returns a multiple of the recipe's number of rankings."""
  prompts, rounds = map(f.scale.value, ("labeling.prompts", "labeling.rounds"))
  return max(1, int(multiple * prompts * rounds))


# Reward models.


def by_rankings(f: SeedRuns, multiple: float) -> Model:
  """Builds the job on a multiple of the recipe's rankings."""
  changes = {"reward.max_rankings": num_rankings(f, multiple)}
  if multiple == 1:
    return "reward"
  if multiple < 1:
    return f.training_job("reward", changes, init=f.reward_start())
  return f.training_job(
    "reward",
    changes,
    init=f.reward_start(),
    label="pool",
    extra_flags={"data.comparisons": f.rankings_flag(pool(f))},
    needs=[pool(f)],
  )


def by_noise(f: SeedRuns, noise: float) -> Job:
  """Builds the job on the recipe's answers, ranked with another noise."""
  labels = relabeled(f, noise)
  return f.training_job(
    "reward",
    init=f.reward_start(),
    label=f"noise={noise:g}",
    extra_flags={"data.comparisons": f.rankings_flag(labels)},
    needs=[labels],
  )


def by_size(f: SeedRuns, size: str) -> Model:
  """Builds the job of a network of another size, pretrained likewise."""
  if size == RECIPE_SIZE:
    return "reward"
  init = size_start(f, size)
  return f.training_job("reward", init=init, size=size, label=size)


def size_start(f: SeedRuns, size: str) -> Model:
  """Returns what reward models of another size start from."""
  return f.reward_start(*model_size.starts(f, size), size=size, label=size)


def base(f: SeedRuns, multiple: float) -> Model:
  """Builds the job of a base model with a multiple of the pretraining."""
  if multiple == 1:
    return "pretrain"
  steps = max(1, int(multiple * f.scale.value("pretrain.steps")))
  changes = {"pretrain.steps": steps}
  if multiple < 1:
    return f.training_job("pretrain", changes)
  text = longer_text(f)
  return f.training_job(
    "pretrain",
    changes,
    label="longer",
    extra_flags={
      "data.pretraining": os.path.join(
        f.directory(text), "world", "pretraining.jsonl"
      )
    },
    needs=[text],
  )


def longer_text(f: SeedRuns) -> Job:
  """Builds the job of the same world with more text and more comparisons."""
  changes = {
    name: int(multiple * f.scale.value(name))
    for name, multiple in (
      ("world.pretraining_tokens", max(TOKENS)),
      ("world.public_comparisons", max(PUBLIC)),
    )
  }
  return f.world_job(changes, "longer")


def num_public(f: SeedRuns, multiple: float) -> int:
  """Returns a multiple of the recipe's number of public comparisons."""
  return int(multiple * f.scale.value("world.public_comparisons"))


def public_start(f: SeedRuns, multiple: float) -> Model:
  """Builds the job on a multiple of the recipe's public comparisons."""
  if multiple == 1:
    return f.reward_start()
  init = f.language_start()
  if not multiple:
    return init
  text = longer_text(f)
  path = os.path.join(f.directory(text), "world", "public_comparisons.jsonl")
  return f.reward_init_job(
    init,
    label=f"public={multiple:g}",
    extra_flags={
      "data.comparisons": path,
      "reward.max_rankings": num_public(f, multiple),
    },
    needs=[text],
  )


def by_public(f: SeedRuns, multiple: float) -> Model:
  """Builds the job that starts from more or fewer public comparisons."""
  if multiple == 1:
    return "reward"
  label = f"from_public={multiple:g}"
  return f.training_job("reward", init=public_start(f, multiple), label=label)


def start(f: SeedRuns, multiple: float) -> Model:
  """Builds the job of what reward models start from, of such a base model."""
  model = base(f, multiple)
  return f.reward_start(model, tuned(f, multiple), label=f"tokens={multiple:g}")


def tuned(f: SeedRuns, multiple: float) -> Job:
  """Builds the job of policy_init, from such a base model."""
  label = f"tokens={multiple:g}"
  return f.training_job("policy_init", init=base(f, multiple), label=label)


def by_tokens(f: SeedRuns, multiple: float) -> Model:
  """Builds the job that starts from a base model of other pretraining."""
  if multiple == 1:
    return "reward"
  label = f"tokens={multiple:g}"
  return f.training_job("reward", init=start(f, multiple), label=label)


def from_policy_init(f: SeedRuns) -> Job:
  """Builds the job that starts from policy_init, without public comparisons."""
  return f.training_job("reward", init="policy_init", label="from=policy_init")


def by_completions(f: SeedRuns, count: int) -> Model:
  """Builds the job on at most K completions of each ranking."""
  if count == f.scale.value("labeling.completions"):
    return "reward"
  changes = {"reward.max_completions": count}
  return f.training_job("reward", changes, init=f.reward_start())


def by_round(f: SeedRuns, number: int) -> Job:
  """Builds the job on one round alone; 0 takes as many rankings of all."""
  if not number:
    changes = {"reward.max_rankings": f.scale.value("labeling.prompts")}
    return f.training_job("reward", changes, init=f.reward_start())
  rankings = f.rankings_flag(round_number=number)
  return f.training_job(
    "reward",
    init=f.reward_start(),
    label=f"round={number}",
    extra_flags={"data.comparisons": rankings},
  )


def other_settings(f: SeedRuns) -> dict[str, Job]:
  """Builds the jobs with other settings of the optimizer, by name."""
  rate = f.scale.value("reward.optimizer.learning_rate")
  batch = f.scale.value("reward.batch_size")
  epochs = f.scale.value("reward.epochs")
  settings: dict[str, dict[str, Any]] = {
    "twice the epochs": {"reward.epochs": 2 * epochs},
    "half the learning rate": {"optimizer.learning_rate": rate / 2},
    "twice the learning rate": {"optimizer.learning_rate": 2 * rate},
    "four times the batch": {
      "reward.batch_size": 4 * batch,
      "optimizer.learning_rate": 2 * rate,
    },
    f"adapters of rank {ADAPTER_RANK}": {
      "model.lora_rank": ADAPTER_RANK,
      "optimizer.learning_rate": 4 * rate,
    },
  }
  return {
    name: f.training_job("reward", changes, init=f.reward_start())
    for name, changes in settings.items()
  }


def larger_sizes(f: SeedRuns) -> list[str]:
  """Lists the sizes above the recipe's."""
  sizes = list(f.scale.sizes)
  return sizes[sizes.index(RECIPE_SIZE) + 1 :]


def causes(f: SeedRuns) -> dict[str, dict[str, Model]]:
  """Returns what may bind → name of a removal → its reward model."""
  return {
    "data": {
      f"{max(RANKINGS)} times the rankings": by_rankings(f, max(RANKINGS))
    },
    "noise": {"labels without noise": by_noise(f, 0.0)},
    "capacity": {
      f"the {size} network": by_size(f, size) for size in larger_sizes(f)
    },
    "representation": {
      f"{max(TOKENS)} times the pretraining": by_tokens(f, max(TOKENS)),
      f"{max(PUBLIC)} times the public comparisons": by_public(f, max(PUBLIC)),
      "a start from policy_init": from_policy_init(f),
    },
    "optimisation": dict(other_settings(f)),
  }


def rounds(f: SeedRuns) -> range:
  """Returns the numbers of the rounds, and 0 for all of them together."""
  return range(f.scale.value("labeling.rounds") + 1)


def probed(f: SeedRuns) -> dict[str, Model]:
  """Returns the language models whose states are probed."""
  largest = list(f.scale.sizes)[-1]
  return {
    "base model": "pretrain",
    "policy_init": "policy_init",
    f"base, {max(TOKENS)} times the pretraining": base(f, max(TOKENS)),
    f"base, {largest} network": model_size.starts(f, largest)[0],
  }


def reward_models(f: SeedRuns) -> list[Model]:
  """Lists all reward models."""
  return [
    *(by_rankings(f, multiple) for multiple in RANKINGS),
    *(by_noise(f, noise) for noise in NOISES),
    *(by_size(f, size) for size in f.scale.sizes),
    *(by_tokens(f, multiple) for multiple in TOKENS),
    *(by_public(f, multiple) for multiple in PUBLIC),
    from_policy_init(f),
    *(by_completions(f, count) for count in COMPLETIONS),
    *(by_round(f, number) for number in rounds(f)),
    *other_settings(f).values(),
  ]


def measured(f: SeedRuns, model: Model) -> Job:
  """Builds the job that measures a model on the held-out pairs."""
  return f.pairs_job(model, held_out(f))


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists rankings, models and measurements, each once."""
  others = [multiple for multiple in TOKENS if multiple != 1]
  models = [
    *(base(f, multiple) for multiple in others),
    *(tuned(f, multiple) for multiple in others),
    *(start(f, multiple) for multiple in others),
    *(public_start(f, multiple) for multiple in PUBLIC),
    *(
      job
      for size in f.scale.sizes
      if size != RECIPE_SIZE
      for job in (*model_size.starts(f, size), size_start(f, size))
    ),
    *reward_models(f),
  ]
  listed = [
    held_out(f),
    pool(f),
    *(relabeled(f, noise) for noise in NOISES),
    longer_text(f),
    *(model for model in models if isinstance(model, Job)),
    *(measured(f, model) for model in reward_models(f)),
    *(measured(f, model) for model in probed(f).values()),
  ]
  return list({job.name: job for job in listed}.values())
