"""Sizes of a study: one recipe for all stages, and flags of other model sizes.

Policies of all studies except `model_size` have the recipe's own size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError

SIZES = ("small", "middle", "large")
RECIPE_SIZE = SIZES[0]  # what the recipe itself describes


@dataclasses.dataclass(frozen=True)
class Scale:
  """Flags of all runs of a study.

  Attributes:
    name: value of `--size`.
    recipe: flags of `experiments.pipeline` for the smallest model.
    sizes: flags that change with the model size.
    measure: flags of `experiments.evaluate`.
    seeds: seeds; each has its own world, demonstrations and labelers.
    preset: preset that the recipe changes.
  """

  name: str
  recipe: Mapping[str, Any]
  sizes: Mapping[str, Mapping[str, Any]]
  measure: Mapping[str, Any]
  seeds: tuple[int, ...] = (0, 1, 2)
  preset: str = "world"

  def value(self, name: str) -> Any:
    """Returns a flag of the recipe, or of the preset if it is unchanged."""
    if name in self.recipe:
      return self.recipe[name]
    value: Any = presets.pipeline(self.preset)
    for part in name.split("."):
      value = getattr(value, part)
    return value

  def model(self, size: str) -> configs.Model:
    """Returns the model config of one of SIZES."""
    config = flags.replace(
      presets.pipeline(self.preset),
      dict(self.recipe) | dict(self.sizes[size]),
    )
    return config.model


def experiment_flags(
  experiment: str, recipe: Mapping[str, Any]
) -> dict[str, Any]:
  """Selects one experiment's flags from a pipeline's recipe."""
  if experiment == "pipeline":
    return dict(recipe)
  fields = {name: configs.experiment_field(name, experiment) for name in recipe}
  return {field: recipe[name] for name, field in fields.items() if field}


def count_parameters(model: configs.Model, vocabulary: int) -> int:
  """Counts the parameters, embeddings and positions included."""
  width, hidden = model.d_model, model.d_model * model.mlp_ratio
  block = 4 * width * (width + 1) + 2 * width * hidden + hidden + width
  block += 4 * width
  whole = model.num_layers * block + 2 * width
  return whole + (vocabulary + model.max_seq_len) * width


def get_scale(name: str) -> Scale:
  """Returns one of SCALES.

  Raises:
    UserError: the name is unknown.
  """
  if name not in SCALES:
    raise UserError(
      f"there is no size {name!r}",
      field="--size",
      fix=configs.nearest(name, SCALES) or f"use one of {', '.join(SCALES)}",
      code="unknown_size",
    )
  return SCALES[name]


def with_seeds(chosen: Scale, seeds: str) -> Scale:
  """Replaces the seeds by those of a comma list, unless it is empty."""
  if not seeds:
    return chosen
  try:
    numbers = tuple(dict.fromkeys(int(s) for s in seeds.split(",")))
  except ValueError as error:
    raise UserError(
      f"{seeds!r} is not a list of seeds",
      field="--seeds",
      fix="use a list such as 0,1,2",
      code="bad_seeds",
    ) from error
  return dataclasses.replace(chosen, seeds=numbers)


_QUIET = {"run.tensorboard": False, "run.save_every": None}

MINI = Scale(
  "mini",
  recipe=_QUIET
  | {
    "model.num_layers": 2,
    "model.d_model": 64,
    "pretrain.steps": 2400,
    "labeling.completions": 9,
    "labeling.prompts": 1000,
    "labeling.rounds": 2,
    "ppo_ptx.optimizer.learning_rate": 1e-3,
    "ppo.ptx_ratio": 1,
    "ppo.ptx_microbatch": 32,
    "evaluation.prompts": 600,
    "evaluation.prefix_prompts": 200,
    "world.test_prompts": 700,
  },
  sizes={
    "small": {},
    "middle": {"model.num_layers": 5, "model.d_model": 128},
    # Three times the width: a third of the learning rates, and a larger init.
    "large": {
      "model.num_layers": 5,
      "model.d_model": 384,
      "model.init_std": 0.046,
      "pretrain.optimizer.learning_rate": 3.5e-4,
      "policy_init.optimizer.learning_rate": 3.5e-4,
      "sft.optimizer.learning_rate": 3.5e-4,
      "reward_init.optimizer.learning_rate": 3e-4,
      "reward.optimizer.learning_rate": 4.5e-5,
      "ppo.optimizer.learning_rate": 1e-4,
      "ppo_ptx.optimizer.learning_rate": 3.5e-4,
    },
  },
  measure={"measure.task_items": 150, "measure.rows": 256},
  # With three, Student's interval over seeds is twice as wide.
  seeds=(0, 1, 2, 3, 4),
)

# The recipe of `make demo`, and networks of 0.13M to 29M parameters around it.
DEMO = Scale(
  "demo",
  recipe=_QUIET,
  sizes={
    "tiny": {"model.num_layers": 2, "model.d_model": 64},
    "small": {},
    "middle": {
      "model.num_layers": 5,
      "model.d_model": 384,
      "model.init_std": 0.046,
      "pretrain.optimizer.learning_rate": 3.5e-4,
      "policy_init.optimizer.learning_rate": 3.5e-4,
      "sft.optimizer.learning_rate": 3.5e-4,
      "reward_init.optimizer.learning_rate": 3e-4,
      "reward.optimizer.learning_rate": 4.5e-5,
      "ppo.optimizer.learning_rate": 1e-4,
      "ppo_ptx.optimizer.learning_rate": 1.7e-4,
    },
    "large": {
      "model.num_layers": 9,
      "model.d_model": 512,
      "model.init_std": 0.04,
      "pretrain.optimizer.learning_rate": 2.6e-4,
      "policy_init.optimizer.learning_rate": 2.6e-4,
      "sft.optimizer.learning_rate": 2.6e-4,
      "reward_init.optimizer.learning_rate": 2.2e-4,
      "reward.optimizer.learning_rate": 3.3e-5,
      "ppo.optimizer.learning_rate": 7e-5,
      "ppo_ptx.optimizer.learning_rate": 1.2e-4,
    },
  },
  measure={"measure.task_items": 150, "measure.rows": 256},
)

# For an accelerator: 0.9M, 8M and 64M parameters. Not run yet.
LARGE = Scale(
  "large",
  recipe=_QUIET
  | {
    "pretrain.steps": 6000,
    "pretrain.batch_size": 64,
    "labeling.completions": 9,
    "labeling.prompts": 4000,
    "labeling.rounds": 3,
    "ppo.episodes": 20_480,
    "ppo.rollout_batch": 256,
    "ppo.minibatch": 64,
    "evaluation.prompts": 1500,
    "world.pretraining_tokens": 20_000_000,
    "world.demonstrations": 5000,
  },
  sizes={
    "small": {},
    "middle": {
      "model.num_layers": 10,
      "model.d_model": 256,
      "model.num_heads": 4,
      "pretrain.optimizer.learning_rate": 8e-4,
    },
    "large": {
      "model.num_layers": 20,
      "model.d_model": 512,
      "model.num_heads": 8,
      "pretrain.optimizer.learning_rate": 5e-4,
    },
  },
  measure={},
)

# Smoke test: runs every command in seconds with one seed; proves nothing.
SMOKE = Scale(
  "smoke",
  recipe=_QUIET
  | {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 1,
    "pretrain.steps": 6,
    "pretrain.batch_size": 4,
    "sft.epochs": 1,
    "policy_init.epochs": 1,
    "labeling.prompts": 24,
    "labeling.valid_prompts": 24,
    "labeling.completions": 3,
    "labeling.rounds": 1,
    "ppo.episodes": 16,
    "ppo.rollout_batch": 8,
    "ppo.minibatch": 4,
    "ppo.ptx_ratio": 1,
    "ppo.ptx_microbatch": 4,
    "evaluation.prompts": 12,
    "evaluation.samples": 2,
    "evaluation.prefix_prompts": 6,
    "world.public_comparisons": 40,
    "world.pretraining_tokens": 12_000,
    "world.demonstrations": 40,
    "world.train_prompts": 60,
    "world.test_prompts": 40,
  },
  sizes={"small": {}, "middle": {}, "large": {}},
  measure={"measure.task_items": 4, "measure.rows": 8},
  seeds=(0,),
)

SCALES = {s.name: s for s in (MINI, DEMO, LARGE, SMOKE)}
