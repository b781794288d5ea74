"""Chooses a recipe: values by size, and a layout that fits the memory. Pure.

The estimate of a run's memory is an argument.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.planner import layouts
from instructgpt_jax.recipes import sizes, values
from instructgpt_jax.recipes.sizes import SizeClass
from instructgpt_jax.recipes.values import Layout, Start

_REMAT = ("none", "dots", "full")
_MAX_COMPLETIONS = 9  # K of a ranking
_EXPERIMENTS = {"reward_init": "reward"}  # stages with another's settings
_ROLLOUT_SHARES = (1.0, 0.5, 0.25, 0.125)
# Returns the estimated peak memory of (experiment, config) in bytes.
Peak = Callable[[str, configs.Experiment], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """The settings of a run that starts from a pretrained model.

  Attributes:
    size: the class of its size.
    values: dotted name → value of the fields that the user has not set.
    peak: estimated bytes on a device; None without an estimate.
    fits: whether the estimate fits the memory.
  """

  size: SizeClass
  values: dict[str, Any]
  peak: float | None
  fits: bool


def choose(
  experiment: str,
  base: configs.Experiment,
  start: Start,
  user: Mapping[str, Any],
  *,
  memory: float | None,
  peak: Peak,
) -> Recipe:
  """Chooses the settings of a run.

  Full training comes before adapters, a large rollout before a small one, and
  saved activations before recomputed ones: the first that fits is taken, with
  the largest microbatches that fit.

  Args:
    experiment: sft, policy_init, reward, ppo, ppo_ptx, evaluate or pipeline.
    base: the defaults, with the values that the user has set.
    start: what is known of the run.
    user: dotted name → value that the user has set.
    memory: bytes of a device; None if unknown.
    peak: estimates the memory of an experiment.
  """
  size = sizes.size_class(start.parameters, start.platform)
  options = list(_layouts(experiment, size, user))
  if memory is None or experiment == "evaluate":
    chosen = values.recipe_values(experiment, size, start, options[0], user)
    return Recipe(size=size, values=chosen, peak=None, fits=True)
  recipe = None
  for layout in options:
    chosen = values.recipe_values(experiment, size, start, layout, user)
    config = flags.replace(_for_estimates(base, start, user), chosen)
    microbatches, most = _fit_microbatches(
      experiment, config, user, memory, peak
    )
    recipe = Recipe(
      size=size,
      values=chosen | microbatches,
      peak=most,
      fits=most <= memory,
    )
    if recipe.fits:
      break
  assert recipe is not None
  return recipe


def _layouts(
  experiment: str, size: SizeClass, user: Mapping[str, Any]
) -> Iterator[Layout]:
  """Yields layouts, those that need less memory later."""
  rank = "model.lora_rank"
  adapters = (False, True) if size.adapters and rank not in user else (False,)
  remats = _REMAT[_REMAT.index(size.remat) :]
  if "model.remat" in user:
    remats = (user["model.remat"],)
  has_rollouts = experiment in ("ppo", "ppo_ptx", "pipeline")
  shares = _ROLLOUT_SHARES if has_rollouts else (1.0,)
  for lora, share, remat in itertools.product(adapters, shares, remats):
    yield Layout(adapters=lora, remat=remat, rollout_share=share)


def _for_estimates(
  config: configs.Experiment, start: Start, user: Mapping[str, Any]
) -> configs.Experiment:
  """Returns a config with the network, for estimates of its memory.

  A reward model's rankings have at most as many completions as its data.
  """
  model = dataclasses.replace(start.model, lora_rank=None)
  config = dataclasses.replace(config, model=model)
  names = ("dtype", "remat", "lora_rank", "lora_alpha", "lora_layers")
  changes = {f"model.{name}" for name in names} & set(user)
  replaced = {name: user[name] for name in changes}
  for name in ("reward_init", "reward"):
    completions = f"{name}.max_completions"
    if hasattr(config, name) and completions not in user:
      most = max((source.completions for source in start.lengths), default=0)
      replaced[completions] = min(most, _MAX_COMPLETIONS) or None
  return flags.replace(config, replaced)


def _fit_microbatches(
  experiment: str,
  config: configs.Experiment,
  user: Mapping[str, Any],
  memory: float,
  peak: Peak,
) -> tuple[dict[str, Any], float]:
  """Returns the largest microbatches that fit, and the peak with them."""
  chosen: dict[str, Any] = {}
  most = 0.0
  for stage, staged in _stages(experiment, config):
    name = stage if experiment == "pipeline" else ""
    options = {
      field: _microbatch_sizes(staged, field)
      for field in layouts.MICROBATCH_FIELDS[_EXPERIMENTS.get(stage, stage)]
      if _run_field(field, name) not in user
    }
    microbatches, needed = _fit_stage(
      options,
      memory,
      lambda sizes, s=stage, c=staged: peak(s, flags.replace(c, sizes)),
    )
    most = max(most, needed)
    for field, value in microbatches.items():
      _keep_smaller(chosen, _run_field(field, name), value)
  return chosen, most


def _fit_stage(
  options: Mapping[str, list[int | None]],
  memory: float,
  peak: Callable[[dict[str, int | None]], float],
) -> tuple[dict[str, int | None], float]:
  """Returns the largest microbatches of a stage that fit, and their peak.

  Where nothing fits, they are the smallest.

  Args:
    options: field → sizes, the largest first.
    memory: bytes of a device.
    peak: estimates the memory with one size of each field.
  """
  chosen = {field: choices[-1] for field, choices in options.items()}
  needed = peak(chosen)  # Most layouts fail with the smallest already.
  if needed > memory:
    return chosen, needed
  for field, descending in options.items():
    for size in descending[:-1]:
      larger = peak({**chosen, field: size})
      if larger <= memory:
        chosen[field], needed = size, larger
        break
  return chosen, needed


def _keep_smaller(chosen: dict[str, Any], name: str, value: int | None) -> None:
  """Sets a microbatch; where two stages share it, the smaller one holds."""
  if name not in chosen or chosen[name] is None:
    chosen[name] = value
  elif value is not None:
    chosen[name] = min(chosen[name], value)


def _run_field(field: str, stage: str) -> str:
  return values.pipeline_field(field, stage) if stage else field


def _stages(
  experiment: str, config: configs.Experiment
) -> Iterator[tuple[str, configs.Experiment]]:
  """Yields the experiments of a run that train, by name."""
  if not isinstance(config, configs.PipelineExperiment):
    yield experiment, config
    return
  shared = dict(
    model=config.model,
    tokenizer=config.tokenizer,
    data=config.data,
    mesh=config.mesh,
  )
  for name in ("policy_init", "sft"):
    stage = getattr(config, name)
    yield (
      name,
      configs.SftExperiment(
        **shared, sft=stage.section, optimizer=stage.optimizer
      ),
    )
  for name in ("reward_init", "reward"):
    stage = getattr(config, name)
    if name == "reward_init" and not stage.comparisons:
      continue
    yield (
      name,
      configs.RewardExperiment(
        **shared, reward=stage.section, optimizer=stage.optimizer
      ),
    )
  # PPO alone needs less.
  yield (
    "ppo_ptx",
    configs.PpoExperiment(
      **shared,
      ppo=config.ppo.section,
      optimizer=config.ppo_ptx.optimizer,
      value_optimizer=config.ppo.value_optimizer,
    ),
  )


def _microbatch_sizes(
  config: configs.Experiment, field: str
) -> list[int | None]:
  """Returns sizes of microbatches, from the recipe's to single rows."""
  rows = _update_rows(config, field)
  leaves = {name: value for name, value, _ in flags.leaves(config)}
  sizes = [leaves[field]]
  # PPO's default is a quarter of an update already.
  size = rows // (4 if field == "ppo.microbatch" else 2)
  while size:
    sizes.append(values.largest_divisor(rows, size))
    size //= 2
  return sizes


def _update_rows(config: Any, field: str) -> int:
  """Returns the rows of an update that a field's microbatches split."""
  section, _, leaf = field.partition(".")
  settings = getattr(config, section)
  if section != "ppo":
    return settings.batch_size
  if leaf == "ptx_microbatch":
    return min(settings.ptx_microbatch, settings.minibatch * settings.ptx_ratio)
  return settings.minibatch
