"""Refuses learning rates of from-nothing recipes for pretrained models.

The small presets train networks of a million parameters, at learning rates that
destroy a pretrained model within a few steps.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError

_LARGE = 2e10  # parameters, from which on the paper's rates are smaller


def check_rates(config: configs.Experiment, model: configs.Model) -> None:
  """Refuses a from-nothing recipe's learning rate for a pretrained model.

  A rate that the user has set is used, whatever it is.

  Args:
    config: a run whose `init_from` is a pretrained model: a directory of
      `transformers`, or a stage whose training began with one.
    model: the network of `init_from`.

  Raises:
    UserError: `recipe_from_nothing`.
  """
  optimizers = _optimizers(config)
  if isinstance(config, configs.PipelineExperiment) and not (
    config.has_public_comparisons
  ):
    optimizers.pop("reward_init.optimizer")
  fields = [
    name
    for name, optimizer in optimizers.items()
    if optimizer.learning_rate in _rates(_is_pretraining(config))
    and not _is_explicit(config, f"{name}.learning_rate")
  ]
  if not fields:
    return
  rate = optimizers[fields[0]].learning_rate
  advice = _advice(config.model, model)
  flags = " ".join(f"--{name}.learning_rate={advice}" for name in fields)
  raise UserError(
    f"is {rate:g}, a rate for a model trained from nothing, but"
    f" {config.init_from} is pretrained",
    field=f"{fields[0]}.learning_rate",
    fix=f"leave out --preset, or give {flags}"
    if _has_recipe(config)
    else f"give {flags}",
    code="recipe_from_nothing",
  )


def _optimizers(config: Any) -> dict[str, configs.Optimizer]:
  """Returns the optimizers that a run with `init_from` uses, by dotted name."""
  result = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if isinstance(value, configs.Optimizer):
      result[field.name] = value
    elif dataclasses.is_dataclass(value):
      result |= {f"{field.name}.{k}": v for k, v in _optimizers(value).items()}
  # A pipeline that starts from a model does not pretrain one.
  result.pop("pretrain.optimizer", None)
  return result


def _is_pretraining(config: configs.Experiment) -> bool:
  return isinstance(config, configs.PretrainExperiment)


def _has_recipe(config: configs.Experiment) -> bool:
  """Returns whether the run has a recipe for pretrained models."""
  if isinstance(config, configs.PipelineExperiment):
    return bool(config.data.demonstrations)  # Otherwise it is in the world.
  return not _is_pretraining(config)


@functools.cache
def _rates(pretraining: bool) -> frozenset[float]:
  """Returns the learning rates of recipes that train from nothing."""
  configs = [presets.pipeline(name) for name in presets.SMALL]
  rates = {
    optimizer.learning_rate
    for config in configs
    for optimizer in _optimizers(config).values()
  }
  if pretraining:
    rates |= {
      presets.pretrain(name).optimizer.learning_rate for name in presets.MODELS
    }
  return frozenset(rates)


def _is_explicit(config: configs.Experiment, name: str) -> bool:
  """Whether the user has set a rate, of the run or of its whole pipeline."""
  if config.data.is_explicit(name):
    return True
  if isinstance(config, configs.PipelineExperiment):
    return False
  # A stage of a pipeline, whose rates were checked when it began.
  return any(
    explicit.endswith("optimizer.learning_rate") and explicit.count(".") > 1
    for explicit in config.data.explicit.split(",")
  )


def _advice(run: configs.Model, c: configs.Model) -> str:
  """Returns a learning rate for a pretrained model of this size."""
  if run.lora_rank:
    return "1e-4"
  parameters = 12 * c.num_layers * c.d_model**2
  return "1e-5" if parameters < _LARGE else "5e-6"
