"""The values that a recipe gives to a run's fields, stage by stage. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.recipes import limits
from instructgpt_jax.recipes.limits import Lengths
from instructgpt_jax.recipes.sizes import (
  ADAPTER_ALPHA,
  ADAPTER_RANK,
  SizeClass,
  adapter_rate,
)

_BATCH = 32  # demonstrations per update
_INIT_EPOCHS = 2
_INIT_FRACTION = 0.1
_WARMUP = 0.03  # share of the updates of SFT and of the reward model
_RESPONSE = 304  # where neither data nor an earlier stage says more
_MAX_EMA, _EMA_SHARE = 0.992, 1 / 8  # of the run that the average spans
_PTX_MICROBATCH = 64
_PIPELINE_STAGES = (
  "policy_init",
  "sft",
  "reward_init",
  "reward",
  "ppo",
  "ppo_ptx",
  "evaluate",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """What is known of a run before its settings are chosen.

  Attributes:
    model: the network that it starts from, with its own context and adapters.
    parameters: number of parameters, without adapters.
    dropout: residual dropout rate that it was trained with.
    platform: "cpu", "cuda" or "tpu".
    lengths: token lengths of the run's sources.
    response_limit: limit on responses of the stage that it starts from, or else
      of its reward model; None if the run chooses its own.
    prompt_limit: the same for prompts.
  """

  model: configs.Model
  parameters: int
  dropout: float
  platform: str
  lengths: tuple[Lengths, ...] = ()
  response_limit: int | None = None
  prompt_limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """What a run does to fit the memory.

  Attributes:
    adapters: whether only LoRA adapters are trained.
    remat: what the backward pass recomputes.
    rollout_share: share of the size's rollout batch.
  """

  adapters: bool
  remat: str
  rollout_share: float = 1.0


class Settings:
  """Values of fields, where a value that the user has set wins."""

  def __init__(
    self,
    user: Mapping[str, Any],
    field_name: Callable[[str], str] = lambda name: name,
    values: dict[str, Any] | None = None,
  ):
    """Initialises the settings.

    Args:
      user: dotted name → value that the user has set.
      field_name: returns the name of a stage's field in the run's config.
      values: values that are chosen already; more are added.
    """
    self.values: dict[str, Any] = {} if values is None else values
    self._user, self._field_name = user, field_name

  def set(self, name: str, value: Any) -> Any:
    """Gives a field a value; returns the one that holds."""
    name = self._field_name(name)
    if name in self._user:
      return self._user[name]
    self.values[name] = value
    return value

  def user(self, name: str) -> Any:
    """Returns the value that the user has set; None if there is none."""
    return self._user.get(self._field_name(name))


def recipe_values(
  experiment: str,
  size: SizeClass,
  start: Start,
  layout: Layout,
  user: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the values of the fields that the user has not set.

  Args:
    experiment: sft, policy_init, reward, ppo, ppo_ptx, evaluate or pipeline.
    size: settings of the network's size.
    start: what is known of the run.
    layout: adapters, recomputation and rollout batch.
    user: dotted name → value that the user has set.
  """
  settings = Settings(user)
  _set_model(settings, start, layout)
  _set_limits(settings, start)
  if experiment != "pipeline":
    _STAGES[experiment](settings, size, start, layout)
    return settings.values
  for stage in _PIPELINE_STAGES:
    if stage == "reward_init" and not user.get("reward_init.comparisons"):
      continue
    _PIPELINE_SETTERS[stage](
      Settings(user, lambda n, s=stage: pipeline_field(n, s), settings.values),
      size,
      start,
      layout,
    )
  return settings.values


def pipeline_field(name: str, stage: str) -> str:
  """Returns the name of a stage's field in the pipeline's config."""
  head, _, rest = name.partition(".")
  if head == "optimizer":
    return f"{stage}.{name}"
  if head == "value_optimizer":
    return f"ppo.{name}"
  if head == "sft" or (head, stage) == ("reward", "reward_init"):
    return f"{stage}.{rest}"
  # The pipeline's held-out rows are as long as those of pretraining.
  return "pretrain.sequence" if name == "measure.sequence" else name


def _set_model(settings: Settings, start: Start, layout: Layout) -> None:
  on_cpu = start.platform == "cpu"
  settings.set("model.max_seq_len", start.model.max_seq_len)
  settings.set("model.dtype", "float32" if on_cpu else "bfloat16")
  settings.set("model.scan_layers", not on_cpu)
  settings.set("model.remat", layout.remat)
  if start.model.lora_rank:
    for name in ("lora_rank", "lora_alpha", "lora_layers"):
      settings.set(f"model.{name}", getattr(start.model, name))
  elif layout.adapters and not settings.user("model.lora_rank"):
    settings.set("model.lora_rank", ADAPTER_RANK)
    settings.set("model.lora_alpha", ADAPTER_ALPHA)


def _set_limits(settings: Settings, start: Start) -> None:
  """Chooses limits that keep most prompts and responses whole."""
  context = _context(settings, start)
  for name in ("sft.sequence", "policy_init.sequence"):
    context = min(context, settings.user(name) or context)
  measured = (
    limits.largest_limit(source.prompts for source in start.lengths),
    limits.largest_limit(source.responses for source in start.lengths),
  )
  names = ("data.max_prompt_tokens", "data.max_response_tokens")
  user_prompt, user_response = (settings.user(name) for name in names)
  fixed_prompt = user_prompt or start.prompt_limit
  fixed_response = user_response or start.response_limit
  prompt = fixed_prompt or measured[0] or context
  response = fixed_response or measured[1] or _RESPONSE
  if fixed_response:
    prompt = max(1, min(prompt, context - response))
  elif fixed_prompt:
    response = max(1, min(response, context - prompt))
  else:
    prompt, response = limits.cap_limits(prompt, response, context)
  settings.set(names[0], prompt)
  settings.set(names[1], response)


def _row_length(settings: Settings, start: Start, usual: int) -> int | None:
  """Returns the length of packed rows; None is the model's context.

  Args:
    settings: has the limits.
    start: has the context.
    usual: the length, unless a prompt and its response are longer.
  """
  context = _context(settings, start)
  total = sum(
    settings.user(f"data.max_{what}_tokens")
    or settings.values[f"data.max_{what}_tokens"]
    for what in ("prompt", "response")
  )
  length = max(usual, -(-total // 64) * 64)
  return length if length < context else None


def _documents_length(settings: Settings, start: Start) -> int | None:
  """Returns the length of document rows; None is the model's context."""
  length = 256 if start.platform == "cpu" else 2048
  return length if length < _context(settings, start) else None


def _context(settings: Settings, start: Start) -> int:
  """Returns the run's context, which the user may have shortened."""
  longest = start.model.max_seq_len
  return min(settings.user("model.max_seq_len") or longest, longest)


def _set_rate(
  settings: Settings, start: Start, layout: Layout, name: str, rate: float
) -> None:
  adapters = (
    layout.adapters or start.model.lora_rank or settings.user("model.lora_rank")
  )
  settings.set(
    f"{name}.learning_rate", adapter_rate(rate) if adapters else rate
  )


def _records(start: Start, name: str) -> int:
  return next((s.records for s in start.lengths if s.name == name), 0)


def _set_warmup(
  settings: Settings, records: int, batch: int, epochs: int
) -> None:
  """Warms up during 3 % of the updates, where their number is known."""
  updates = epochs * math.ceil(records / batch)
  if updates:
    settings.set("optimizer.warmup_steps", math.ceil(_WARMUP * updates))


def _set_sft(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> None:
  _set_supervised(settings, size, start, layout, size.sft_epochs)


def _set_policy_init(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> None:
  _set_supervised(settings, size, start, layout, _INIT_EPOCHS)
  settings.set("sft.pretraining_fraction", _INIT_FRACTION)
  settings.set("sft.select_by", "last")


def _set_supervised(
  settings: Settings,
  size: SizeClass,
  start: Start,
  layout: Layout,
  epochs: int,
) -> None:
  _set_rate(settings, start, layout, "optimizer", size.sft_rate)
  epochs = settings.set("sft.epochs", epochs)
  batch = settings.set("sft.batch_size", _BATCH)
  records = _records(start, "demonstrations")
  _set_warmup(settings, records, batch, epochs)
  settings.set("sft.dropout", start.dropout)
  usual = 512 if start.platform == "cpu" else 2048
  settings.set("sft.sequence", _row_length(settings, start, usual))


def _set_reward(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> None:
  epochs, batch = _set_reward_training(settings, size, start, layout)
  records = _records(start, "comparisons")
  _set_warmup(settings, records, batch, epochs)


def _set_reward_training(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> tuple[int, int]:
  """Sets what rankings of any source share; returns epochs and batch."""
  _set_rate(settings, start, layout, "optimizer", size.reward_rate)
  epochs = settings.set("reward.epochs", 1)
  return epochs, settings.set("reward.batch_size", size.reward_batch)


def _set_ppo(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> None:
  _set_iterations(settings, size, start, layout)
  _set_rate(settings, start, layout, "optimizer", size.ppo_rate)
  settings.set("ppo.ptx_coef", 0.0)


def _set_ppo_ptx(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> None:
  minibatch = _set_iterations(settings, size, start, layout)
  _set_rate(settings, start, layout, "optimizer", size.ptx_rate)
  settings.set("ppo.ptx_coef", size.ptx_coef)
  ratio = settings.set("ppo.ptx_ratio", size.ptx_ratio)
  settings.set(
    "ppo.ptx_microbatch", largest_divisor(minibatch * ratio, _PTX_MICROBATCH)
  )
  settings.set("ppo.ptx_sequence", _documents_length(settings, start))


def _set_iterations(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> int:
  """Sets what PPO and PPO-ptx share; returns the episodes of an update."""
  _set_rate(settings, start, layout, "value_optimizer", size.value_rate)
  episodes = settings.set("ppo.episodes", size.episodes)
  most = max(1, int(min(size.rollout_batch * layout.rollout_share, episodes)))
  minibatch = settings.user("ppo.minibatch") or min(size.minibatch, most)
  rollout = settings.set(
    "ppo.rollout_batch", max(1, most // minibatch) * minibatch
  )
  minibatch = settings.set("ppo.minibatch", largest_divisor(rollout, minibatch))
  iterations = -(-episodes // rollout)
  epochs = settings.user("ppo.inner_epochs") or 1
  updates = iterations * epochs * max(1, rollout // minibatch)
  settings.set("ppo.warmup_iterations", min(10, max(1, iterations // 10)))
  decay = 1 - 1 / (_EMA_SHARE * updates)
  settings.set("ppo.ema_decay", round(min(_MAX_EMA, max(0.0, decay)), 3))
  settings.set("ppo.kl_coef", size.kl_coef)
  return minibatch


def _set_evaluate(
  settings: Settings, size: SizeClass, start: Start, layout: Layout
) -> None:
  del size, layout
  settings.set("measure.sequence", _documents_length(settings, start))
  if start.platform == "cpu":
    settings.set("evaluation.prompts", 100)
    settings.set("evaluation.samples", 1)
    settings.set("evaluation.prefix_prompts", 50)
    settings.set("evaluation.batch_size", 64)


def largest_divisor(whole: int, limit: int) -> int:
  """Returns the largest divisor of a number that is at most `limit`."""
  return next(n for n in range(min(whole, limit), 0, -1) if whole % n == 0)


_STAGES = {
  "sft": _set_sft,
  "policy_init": _set_policy_init,
  "reward": _set_reward,
  "ppo": _set_ppo,
  "ppo_ptx": _set_ppo_ptx,
  "evaluate": _set_evaluate,
}
_PIPELINE_SETTERS = _STAGES | {"reward_init": _set_reward_training}
EXPERIMENTS = (*_STAGES, "pipeline")
