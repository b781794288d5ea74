"""Checks a config by itself, before anything is read or traced.

A stage runs the checks at its start. A sweep runs them for all of its runs
before the first one starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError


def check_divides(
  part: int | None, whole: int, field: str, *, allow_larger: bool = True
) -> None:
  """Refuses microbatches that do not make up the rows of an update.

  Args:
    part: rows of a microbatch; None is not checked.
    whole: rows of an update.
    field: name of the setting.
    allow_larger: whether a microbatch of more than `whole` rows is allowed.
  """
  if part and whole % part and (part < whole or not allow_larger):
    raise UserError(
      f"{part} does not divide the {whole} rows of an update",
      field=field,
      fix=f"give a divisor of {whole}",
      code="not_a_divisor",
    )


def check_lengths(
  data: configs.Data, length: int, field: str = "model.max_seq_len"
) -> None:
  """Refuses limits on prompt and response that exceed a row.

  Args:
    data: the limits.
    length: tokens of a row.
    field: the setting that decides them.
  """
  total = data.max_prompt_tokens + data.max_response_tokens
  if total > length:
    raise UserError(
      f"prompts of {data.max_prompt_tokens} and responses of"
      f" {data.max_response_tokens} tokens do not fit {length} positions",
      field="data.max_response_tokens",
      fix="lower data.max_prompt_tokens or data.max_response_tokens, or"
      f" raise {field}",
      code="context_too_small",
    )


def row_length(length: int | None, context: int, field: str) -> int:
  """Returns the length of document rows; None uses the whole context."""
  if length and length > context:
    raise UserError(
      f"rows of {length} tokens do not fit {context} positions",
      field=field,
      fix=f"give at most {context}, or none for the model's max_seq_len",
      code="context_too_small",
    )
  return length or context


def check_demonstration_rows(
  data: configs.Data, section: configs.Sft, context: int, name: str = "sft"
) -> int:
  """Returns the length of SFT's rows, which hold a prompt and its response.

  Args:
    data: the limits.
    section: settings of the stage.
    context: positions of the model.
    name: name of the section in the config.
  """
  field = f"{name}.sequence"
  length = row_length(section.sequence, context, field)
  check_lengths(
    data, length, field if section.sequence else "model.max_seq_len"
  )
  return length


def check_ppo_batches(section: configs.Ppo) -> None:
  """Refuses PPO batches that minibatches or microbatches do not divide."""
  if section.rollout_batch % section.minibatch:
    raise UserError(
      f"{section.minibatch} does not divide rollout_batch"
      f" {section.rollout_batch}",
      field="ppo.minibatch",
      fix="give a divisor of --ppo.rollout_batch",
      code="not_a_divisor",
    )
  # Episodes are packed into whole microbatches.
  check_divides(
    section.microbatch,
    section.minibatch,
    "ppo.microbatch",
    allow_larger=False,
  )
  rows = section.minibatch * section.ptx_ratio
  check_divides(section.ptx_microbatch, rows, "ppo.ptx_microbatch")


def check_ppo(section: configs.Ppo, data: configs.Data, context: int) -> None:
  """Refuses batches and lengths of PPO that do not fit.

  Args:
    section: the run's PPO settings.
    data: the run's data section.
    context: positions of the policy.
  """
  check_lengths(data, context)
  check_ppo_batches(section)
  check_reward_models(section, "ppo")
  if section.ptx_coef:
    row_length(section.ptx_sequence, context, "ppo.ptx_sequence")
  if section.judge and not (section.eval_every or section.samples_every):
    raise UserError(
      "judges answers to held-out prompts, and the run has none",
      field="ppo.judge",
      fix="give --ppo.eval_every=N or --ppo.samples_every=N",
      code="unused_judge",
    )


def check_model_names(names: Sequence[str], field: str) -> None:
  """Refuses a comma list of models with a blank name, or with one twice."""
  if len({name.strip() for name in names} - {""}) < len(names):
    raise UserError(
      f"{','.join(names)!r} has a blank name, or one twice",
      field=field,
      fix="give different directories, separated by commas",
      code="bad_reward_models",
    )


def check_reward_models(section: configs.RewardModels, name: str) -> None:
  """Refuses an ensemble whose models and settings do not fit together.

  Args:
    section: the section that names the reward models.
    name: its name in the config.

  Raises:
    UserError: `bad_reward_models`, a name is blank or occurs twice;
      `no_ensemble`, several models without `reward_ensemble`;
      `one_reward_model`, the reverse; `unused_coefficient`.
  """
  field, models = f"{name}.reward_model", section.reward_models
  check_model_names(models, field)
  if len(models) > 1 and section.reward_ensemble is None:
    raise UserError(
      f"names {len(models)} models, and nothing says how to combine them",
      field=field,
      fix=f"give --{name}.reward_ensemble=mean, worst or mean_minus_deviation",
      code="no_ensemble",
    )
  if section.reward_ensemble is not None and len(models) < 2:
    raise UserError(
      f"is {section.reward_ensemble}, which needs several reward models",
      field=f"{name}.reward_ensemble",
      fix=f"leave it out, or give --{field}=DIR,DIR2",
      code="one_reward_model",
    )
  if (
    section.reward_deviation_coef is not None
    and section.reward_ensemble != "mean_minus_deviation"
  ):
    raise UserError(
      "is set, and no deviation is subtracted",
      field=f"{name}.reward_deviation_coef",
      fix="leave it out, or subtract it by"
      f" --{name}.reward_ensemble=mean_minus_deviation",
      code="unused_coefficient",
    )


def check_margin(section: configs.Reward, name: str = "reward") -> None:
  """Refuses the coefficient of a margin that there is not.

  Args:
    section: the settings.
    name: their section in the config.

  Raises:
    UserError: `unused_coefficient`.
  """
  if section.margin_coef is not None and section.margin is None:
    raise UserError(
      "is set, and no preference has a margin",
      field=f"{name}.margin_coef",
      fix=f"leave it out, or give --{name}.margin=rank or grade",
      code="unused_coefficient",
    )


def check_batches(config: Any) -> None:
  """Refuses settings of any stage's batches and losses that do not fit."""
  if isinstance(config, configs.PpoExperiment):
    check_ppo_batches(config.ppo)
    check_reward_models(config.ppo, "ppo")
  for name in ("pretrain", "reward"):
    section = getattr(config, name, None)
    if section is not None and hasattr(section, "microbatch"):
      check_divides(
        section.microbatch, section.batch_size, f"{name}.microbatch"
      )
  if isinstance(config, configs.RewardExperiment):
    check_margin(config.reward)


def check_pipeline_lengths(config: Any) -> None:
  """Refuses limits that the context of a stage trained from nothing cuts.

  A stage with `init_from` has its context from there.
  """
  if not isinstance(config, configs.Experiment) or config.init_from:
    return
  context = config.model.max_seq_len
  if isinstance(config, configs.PretrainExperiment):
    row_length(config.pretrain.sequence, context, "pretrain.sequence")
    return
  check_lengths(config.data, context)
  if isinstance(config, configs.SftExperiment):
    check_demonstration_rows(config.data, config.sft, context)
  if isinstance(config, configs.PpoExperiment) and config.ppo.ptx_coef:
    row_length(config.ppo.ptx_sequence, context, "ppo.ptx_sequence")


def check_pipeline(config: configs.PipelineExperiment, context: int) -> None:
  """Checks all stages' settings, before the first stage of a pipeline runs.

  Args:
    config: the pipeline, with the limits that its stages take over.
    context: positions of the base model.
  """
  if not config.init_from:
    row_length(config.pretrain.sequence, context, "pretrain.sequence")
    check_divides(
      config.pretrain.microbatch,
      config.pretrain.batch_size,
      "pretrain.microbatch",
    )
  if config.until in ("world", "pretrain"):
    return
  check_ppo(config.ppo, config.data, context)
  if config.ppo.reward_ensemble is not None:
    raise UserError(
      f"is {config.ppo.reward_ensemble}; a pipeline trains one reward model",
      field="ppo.reward_ensemble",
      fix="leave it out, and run experiments.ppo with several",
      code="one_reward_model",
    )
  for name, stage in (
    ("sft", config.sft),
    ("policy_init", config.policy_init),
  ):
    check_demonstration_rows(config.data, stage, context, name)
  for name, section in (
    ("reward_init", config.reward_init),
    ("reward", config.reward),
  ):
    check_divides(section.microbatch, section.batch_size, f"{name}.microbatch")
    check_margin(section, name)
