"""Completes the config of a run that starts from a pretrained model."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.data.prepared import records as prepared_records
from instructgpt_jax.models.heads import LanguageModel, abstract_params
from instructgpt_jax.planner import plan
from instructgpt_jax.recipes import device as device_lib
from instructgpt_jax.recipes import lengths, limits, recipe, values
from instructgpt_jax.recipes.device import Device
from instructgpt_jax.recipes.limits import Lengths
from instructgpt_jax.recipes.recipe import Recipe
from instructgpt_jax.recipes.values import Start
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import inheritance, stage_model
from instructgpt_jax.training.stage_model import Stage

E = TypeVar("E", bound=configs.Experiment)

_DEFAULTS = "1.3b"  # preset with the paper's settings, which a recipe changes
_NO_LIMIT = 1 << 30
# Residual dropout of a config.json, by the family's name for it.
_DROPOUT_KEYS = (
  "resid_pdrop",  # GPT-2, GPT-J
  "hidden_dropout",  # GPT-NeoX
  "residual_dropout",  # StarCoder 2
  "dropout",  # OPT
)


def resolve(call: flags.Call, experiment: str) -> Any:
  """Completes a run's config from its recipe and the stage it starts from.

  A recipe holds where `init_from` is a pretrained model, or a stage whose
  training began with one, and the user has given neither a preset nor the
  config of an earlier run. Values that the user has set win. A run that is
  resumed keeps the values that it recorded.

  Args:
    call: the command line.
    experiment: name of the experiment.

  Raises:
    UserError: the stage or the data cannot be read.
  """
  config = call.config
  if call.has_settings or not _may_take_recipe(config, experiment):
    return inheritance.inherit_architecture(config)
  stage = _open_stage(config)
  if stage.origin is None:
    return inheritance.inherit_architecture(config)
  limits_of_data = prepared_records.limits(config.data)
  user = {
    **{f"data.{name}": value for name, value in limits_of_data.items()},
    **flags.explicit_values(config),
  }
  base = _with_values(presets.EXPERIMENTS[experiment](_DEFAULTS), user, config)
  recorded = _recorded_values(base, experiment, call.workdir)
  if recorded is not None:
    log_line(f"recipe: as recorded in {call.workdir}")
    chosen = {k: v for k, v in recorded.items() if k not in user}
    return inheritance.inherit_architecture(
      flags.replace(base, chosen), inheritance.LIMITS
    )
  device = device_lib.find_device()
  scorer = _reward_stage(base)
  start = _describe_start(base, experiment, stage, scorer, device)
  reward_model = scorer.model_config if scorer else None
  chosen_recipe = recipe.choose(
    experiment,
    base,
    start,
    user,
    memory=device.memory,
    peak=lambda _, run: _estimate_peak(run, device, reward_model),
  )
  for line in _lines(base, start, device, chosen_recipe):
    log_line(line)
  return inheritance.inherit_architecture(
    flags.replace(base, chosen_recipe.values), inheritance.LIMITS
  )


def _may_take_recipe(config: configs.Experiment, experiment: str) -> bool:
  if experiment not in values.EXPERIMENTS or not config.init_from:
    return False
  # Without data a pipeline trains on the embedded world.
  sources = lengths.SOURCES["pipeline"]
  has_data = any(getattr(config.data, name) for name in sources)
  return has_data or experiment != "pipeline"


def _open_stage(config: configs.Experiment) -> Stage:
  """Opens `init_from` with its own context, unless the user has set one."""
  if not config.is_explicit("model.max_seq_len"):
    model = dataclasses.replace(config.model, max_seq_len=_NO_LIMIT)
    config = dataclasses.replace(config, model=model)
  return stage_model.open_stage(config.init_from, field="init_from", run=config)


def _with_values(base: E, user: Mapping[str, Any], config: E) -> E:
  """Returns a config with the user's values, and with which those are."""
  base = flags.replace(base, user)
  base = dataclasses.replace(base, processes=config.processes)
  return flags.replace(base, {"data.explicit": config.data.explicit})


def _recorded_values(
  base: configs.Experiment, experiment: str, workdir: str
) -> dict[str, Any] | None:
  """Returns the values of the run that has begun in the workdir.

  Values that the user had set are left out. None without such a run.
  """
  path = pathlib.Path(workdir) / files.CONFIG
  if not workdir or not path.exists():
    return None
  record = files.read_json(path, fix="delete it, or choose another --workdir")
  if not isinstance(record, dict) or record.get("experiment") != experiment:
    return None  # The claim on the workdir refuses it.
  old = flags.config_from_dict(base, record.get("config", {}), file=str(path))
  return {
    name: value
    for name, value, _ in flags.leaves(old)
    if not old.is_explicit(name)
    and not name.startswith(("processes.", "run."))
    and name not in ("until", "data.explicit")
  }


def _describe_start(
  base: configs.Experiment,
  experiment: str,
  stage: Stage,
  reward_model: Stage | None,
  device: Device,
) -> Start:
  """Gathers what is known of a run; reads its data."""
  assert stage.origin is not None
  data = inheritance.inherited_data(base.data, stage)
  is_trained = stage.source is None and stage.has_prompts
  # A pipeline's stages have the limits of the stage that it starts from.
  has_limits = is_trained and experiment == "pipeline"
  answers = experiment in ("ppo", "ppo_ptx", "evaluate")
  response_limit = None
  if has_limits or (is_trained and answers):
    response_limit = data.max_response_tokens
  elif answers and reward_model is not None and reward_model.source is None:
    # It has not seen longer ones.
    response_limit = reward_model.data.max_response_tokens
  return Start(
    model=stage.model_config,
    parameters=_num_params(stage.model_config),
    dropout=trained_dropout(stage.origin.config),
    platform=device.platform,
    lengths=lengths.measure_sources(experiment, data, stage.tokenizer),
    prompt_limit=data.max_prompt_tokens if has_limits else None,
    response_limit=response_limit,
  )


def trained_dropout(settings: Mapping[str, Any]) -> float:
  """Returns the residual dropout rate that a network was trained with.

  Args:
    settings: its config.json; without such a rate it is 0.
  """
  rates = [settings[key] for key in _DROPOUT_KEYS if key in settings]
  rate = rates[0] if rates else 0.0
  is_rate = isinstance(rate, (int, float)) and 0 <= rate < 1
  return float(rate) if is_rate else 0.0


def _num_params(model: configs.Model) -> int:
  """Counts the parameters of a language model, without adapters."""
  network = LanguageModel(
    dataclasses.replace(model, lora_rank=None, scan_layers=True)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(network)))


def _reward_stage(config: configs.Experiment) -> Stage | None:
  """Opens the reward model of PPO or of an evaluation, if there is one."""
  if isinstance(config, configs.PpoExperiment):
    path, field = config.ppo.reward_model, "ppo.reward_model"
  elif isinstance(config, configs.EvaluateExperiment):
    path, field = config.measure.reward_model, "measure.reward_model"
  else:
    return None
  if not path:
    return None
  return stage_model.open_stage(
    path, kind=stage_model.SCALAR, field=field, run=config
  )


def _estimate_peak(
  config: configs.Experiment,
  device: Device,
  reward_model: configs.Model | None,
) -> float:
  """Estimates the bytes of a device; scanned layers are traced faster."""
  model = dataclasses.replace(config.model, scan_layers=True)
  if reward_model is not None:
    reward_model = dataclasses.replace(reward_model, scan_layers=True)
  return plan.estimate_peak(
    dataclasses.replace(config, model=model),
    platform=device.platform,
    devices=device.count,
    reward_model=reward_model,
  )


def _lines(
  base: configs.Experiment, start: Start, device: Device, chosen: Recipe
) -> list[str]:
  """Returns the lines that say which recipe a run takes, and why."""
  device_text = device.platform
  if device.memory is not None:
    device_text += f" with {_gigabytes(device.memory)} to use"
  if chosen.peak is not None:
    device_text += f", about {_gigabytes(chosen.peak)} needed"
  defaults = {name: value for name, value, _ in flags.leaves(base)}
  measured = [
    text
    for source in start.lengths
    if (text := _limits_text(defaults | chosen.values, source))
  ]
  changed = [
    f"{name}={_text(value)}"
    for name, value in chosen.values.items()
    if value != defaults[name] and not any(name in text for text in measured)
  ]
  lines = [
    f"recipe: pretrained, {chosen.size.name} parameters ({base.init_from} has"
    f" {start.parameters / 1e6:,.1f}M), {device_text}; flags and --preset"
    " override it",
    f"recipe: {', '.join(changed)}",
  ]
  if measured:
    lines.append(f"recipe: {'; '.join(measured)}")
  if not chosen.fits:
    advice = "python -m instructgpt_jax.planner shows what needs it"
    if base.mesh.fsdp == 1 and device.count > 1:
      advice += f"; --mesh.fsdp={device.count} shards the weights"
    lines.append(f"recipe: the run may exceed the memory; {advice}")
  return lines


_LIMIT_FIELDS = tuple(f"data.{name}" for name in inheritance.LIMITS)


def _limits_text(settings: Mapping[str, Any], source: Lengths) -> str:
  """Returns how many texts of a source the limits keep whole."""
  parts = []
  for name, measured in zip(
    _LIMIT_FIELDS, (source.prompts, source.responses), strict=True
  ):
    if len(measured):
      share = limits.share_whole(measured, settings[name])
      what = "prompts" if "prompt" in name else "responses"
      parts.append(f"{name}={settings[name]} keeps {share:.1%} of {what} whole")
  return f"{source.name}: {', '.join(parts)}" if parts else ""


def _text(value: Any) -> str:
  if value is None:
    return "none"
  return f"{value:g}" if isinstance(value, float) else str(value)


def _gigabytes(size: float) -> str:
  return f"{size / 1e9:.1f} GB"
