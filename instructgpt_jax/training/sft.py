"""SFT: fine-tunes on demonstrations; also the policy's initialisation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching, encoding, packing
from instructgpt_jax.data.batch_source import SourceMix
from instructgpt_jax.data.row_source import AnyRows, row_source
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import (
  fingerprint,
  held_out,
  inheritance,
  inputs,
  language,
  mixed_sources,
  sampling,
  scoring,
  stage_model,
  step_layout,
  task_validation,
)
from instructgpt_jax.training.held_out import HeldOut, Scorer, load_scorer
from instructgpt_jax.training.language import Measure, Selection
from instructgpt_jax.types import PyTree


def train(
  config: configs.SftExperiment,
  directory: str,
  *,
  name: str = "sft",
  measure_tasks: task_validation.MeasureTasks | None = None,
) -> None:
  """Fine-tunes on demonstrations; also the policy's initialisation.

  A step has about `sft.batch_size` demonstrations. Packed rows hold several, so
  the number of rows in a step follows from their average number in a row
  (`step_layout`). It is the same on every mesh; only rows of padding are added.

  Args:
    config: the experiment.
    directory: its workdir.
    name: "sft" or "policy_init".
    measure_tasks: measures the tasks of `sft.tasks`, see `task_validation`.
  """
  if stage_model.is_complete(directory):
    return
  section = config.sft
  checks.check_demonstration_rows(
    config.data, section, config.model.max_seq_len
  )
  tokenizer = inheritance.stage_tokenizer(
    directory,
    config,
    lambda: inputs.training_texts(
      config.data, tell=not section.pretraining_fraction
    ),
  )
  model = LanguageModel(
    inheritance.model_config(config, tokenizer, section.dropout)
  )
  records = inputs.demonstrations(config.data, tokenizer)
  mesh = mesh_lib.make_mesh(config.mesh)
  scorer = _load_reward_model(config, tokenizer, records, mesh)
  measure = _make_reward_measure(config, tokenizer, records, scorer, mesh)
  select = choose_selection(
    section, name, measure is not None, len(records.valid)
  )
  demonstrations = _pack_demonstrations(config, records, tokenizer)
  rows, mix = demonstrations.rows, demonstrations.mix
  layout = step_layout.step_layout(
    section,
    row_source(rows).count,
    mixed_sources.count_records(rows, mix, len(records.train)),
  )
  plan = dataclasses.replace(
    _make_plan(
      config, directory, name, tokenizer, demonstrations, layout, mesh
    ),
    select=select,
    measure=measure,
    sampled=_make_sampled(config, model, tokenizer, records, scorer, mesh),
    samples_every=section.samples_every or 0,
    make_tasks=lambda all_params: task_validation.make_loop(
      section, measure_tasks, model, all_params, tokenizer, mesh
    ),
  )
  language.train(config, directory, model, tokenizer, plan, mesh)


def choose_selection(
  section: configs.Sft, name: str, has_reward_model: bool, num_valid: int
) -> Selection:
  """Chooses how the parameters are selected that the stage saves.

  `sft.select_by` says it; "auto" takes the first of reward, loss and last step
  that can be measured.

  Args:
    section: the SFT settings.
    name: name of the stage, for what is shown.
    has_reward_model: whether there is a reward model.
    num_valid: number of validation records.

  Raises:
    UserError: `no_reward_model` or `no_validation`, `sft.select_by` names what
      cannot be measured.
  """
  select = section.select_by
  if select == "reward" and not has_reward_model:
    raise UserError(
      "is 'reward', but no reward model is given",
      field="sft.select_by",
      fix="give --sft.reward_model=DIR, or --sft.select_by=loss",
      code="no_reward_model",
    )
  if select in ("loss", "reward") and not num_valid:
    raise UserError(
      f"is {select!r}, but there are no validation records to measure it on",
      field="sft.select_by",
      fix="raise --data.valid_fraction, give demonstrations with a validation"
      " split, or --sft.select_by=last",
      code="no_validation",
    )
  if select != "auto":
    return select
  if has_reward_model:
    return "reward"
  if num_valid:
    return "loss"
  log_line(f"{name}: no validation records: the last step is saved")
  return "last"


def _load_reward_model(
  config: configs.SftExperiment,
  tokenizer: Tokenizer,
  records: inputs.Splits,
  mesh: Mesh,
) -> Scorer | None:
  """Loads `sft.reward_model`, which scores answers; None without one."""
  section = config.sft
  if not section.reward_model:
    return None
  stage = stage_model.open_stage(
    section.reward_model,
    kind=stage_model.SCALAR,
    field="sft.reward_model",
    run=config,
  )
  inheritance.require_compatible(
    stage, tokenizer, config.data, "sft.reward_model"
  )
  if not records.valid:
    raise UserError(
      "there is no validation prompt to choose a checkpoint on",
      field="data.demonstrations",
      fix="raise --data.valid_fraction, or leave out --sft.reward_model",
      code="no_validation",
    )
  return load_scorer([stage], mesh)


def _make_reward_measure(
  config: configs.SftExperiment,
  tokenizer: Tokenizer,
  records: inputs.Splits,
  scorer: Scorer | None,
  mesh: Mesh,
) -> Measure | None:
  """Returns a function that scores a policy with `sft.reward_model` (C.1).

  It samples responses to validation prompts, and returns their mean score.
  Without a reward model the result is None.
  """
  section = config.sft
  if scorer is None:
    return None
  valid_records = records.valid[: section.select_prompts]
  prompts = encoding.encode_prompts(
    [record.turns for record in valid_records], tokenizer, config.data
  )

  def measure(model: LanguageModel, policy: PyTree) -> dict[str, float]:
    rollout = sampling.respond(
      model,
      policy,
      prompts,
      jax.random.key(config.seed),
      sampling=sampling.sampling_params(
        tokenizer,
        max_new_tokens=config.data.max_response_tokens,
        samples=section.select_samples,
      ),
      mesh=mesh,
    )
    scores = scorer.score(scoring.answers(rollout), mesh)
    return {"valid_rm_score": float(scores.mean())}

  return measure


def _make_sampled(
  config: configs.SftExperiment,
  model: LanguageModel,
  tokenizer: Tokenizer,
  records: inputs.Splits,
  scorer: Scorer | None,
  mesh: Mesh,
) -> HeldOut | None:
  """Returns the prompts that are answered every `sft.samples_every` steps."""
  if not config.sft.samples_every:
    return None
  return HeldOut(
    network=model,
    prompts=held_out.choose_prompts(
      records.valid,
      config.sft.sample_prompts,
      config,
      tokenizer,
      "sft.samples_every",
    ),
    tokenizer=tokenizer,
    sampling=sampling.sampling_params(
      tokenizer, max_new_tokens=config.data.max_response_tokens
    ),
    mesh=mesh,
    seed=config.seed,
    scorers={} if scorer is None else {"reward": scorer},
  )


class _SourceRows(NamedTuple):
  """Rows of a source, and its fingerprint.

  Attributes:
    source: the source.
    rows: training rows.
    mix: shares of the source's parts; None where they have no weights.
    valid: part → validation rows; {} where there is no use for them.
    fingerprint: fingerprint of the source.
  """

  source: mixed_sources.MixedSource
  rows: AnyRows
  mix: SourceMix | None
  valid: Mapping[str, packing.Rows]
  fingerprint: fingerprint.Source


def _pack_demonstrations(
  config: configs.SftExperiment, records: inputs.Splits, tokenizer: Tokenizer
) -> _SourceRows:
  """Encodes demonstrations into rows, packed if `sft.pack` is set."""
  pack = functools.partial(
    inputs.demonstration_rows,
    tokenizer=tokenizer,
    data=config.data,
    length=config.sft.sequence or config.model.max_seq_len,
    section=config.sft,
  )
  source = mixed_sources.open_source(config.data, "data.demonstrations")
  rows, mix = source.pack(records.train, pack)
  valid = source.pack_validation(records.valid, pack)
  fingerprinted = fingerprint.fingerprint_source(
    config.data.demonstrations,
    [rows, *valid.values()],
    train=len(records.train),
    valid=len(records.valid),
  )
  return _SourceRows(source, rows, mix, valid, fingerprinted)


def _pack_documents(
  config: configs.SftExperiment, tokenizer: Tokenizer
) -> _SourceRows:
  """Packs the documents that are mixed into the batches of SFT."""
  length = config.sft.sequence or config.model.max_seq_len
  documents = documents_lib.open_documents(config.data)
  rows, mix = documents.pack(tokenizer, length)
  fingerprinted = documents.fingerprint([rows], "train", "valid")
  return _SourceRows(documents.source, rows, mix, {}, fingerprinted)


def _make_plan(
  config: configs.SftExperiment,
  directory: str,
  name: str,
  tokenizer: Tokenizer,
  demonstrations: _SourceRows,
  layout: step_layout.StepLayout,
  mesh: Mesh,
) -> language.Plan:
  """Makes batches of demonstrations, mixed with rows of pretraining documents.

  Args:
    config: the experiment.
    directory: its workdir.
    name: name of the stage.
    tokenizer: the run's tokenizer.
    demonstrations: rows of demonstrations.
    layout: number of rows of a step.
    mesh: the mesh that the batches are padded for.
  """
  section, rows = config.sft, demonstrations.rows
  num_rows = row_source(rows).count
  steps_per_epoch = math.ceil(num_rows / layout.demonstration_rows)
  total_steps = section.epochs * steps_per_epoch
  sources = {"data.demonstrations": demonstrations.fingerprint}
  padded = _pad_for_mesh(layout, name, mesh)
  spec = batching.BatchSpec(
    batch_size=layout.demonstration_rows,
    seed=config.seed,
    mix=demonstrations.mix,
    **transfer.get_process_shard(padded.rows, mesh),
  )
  documents = None
  if section.reward_model:  # It selects the parameters that are saved.
    model_source = fingerprint.fingerprint_model(section.reward_model)
    sources["sft.reward_model"] = model_source
  if section.pretraining_fraction:
    documents = _pack_documents(config, tokenizer)
    sources["data.pretraining"] = documents.fingerprint
  _report_use(directory, demonstrations, documents, layout, spec, total_steps)
  batches = batching.mixed_language_batches(
    rows,
    documents.rows if documents else None,
    section.pretraining_fraction,
    spec,
    padded_size=padded.rows,
    pad_id=tokenizer.pad_id,
    pretraining_mix=documents.mix if documents else None,
  )
  counts = {
    "rows": layout.demonstration_rows,
    "pretraining_fraction": section.pretraining_fraction,
    "steps": total_steps,
  }
  return language.Plan(
    name=name,
    batches=batches,
    valid_rows=demonstrations.valid,
    total_steps=total_steps,
    microbatch=padded.microbatch,
    eval_every=steps_per_epoch,
    fingerprint=fingerprint.Fingerprint(counts, sources, counted=False),
    step_metrics=_make_share_metrics(
      name, demonstrations, documents, layout.fraction, spec, total_steps
    ),
  )


def _report_use(
  directory: str,
  demonstrations: _SourceRows,
  documents: _SourceRows | None,
  layout: step_layout.StepLayout,
  spec: batching.BatchSpec,
  total_steps: int,
) -> None:
  """Reports how much of each weighted part a run uses."""
  total = layout.demonstration_rows * total_steps
  uses = [mixed_sources.use_of_rows(*demonstrations[:3], total)]
  if documents is not None:
    mixture = batching.Mixture(layout.fraction, layout.demonstration_rows)
    total = mixture.rows_after(total)
    use = mixed_sources.use_of_rows(*documents[:3], total, stream=1)
    uses.append(use)
  mixed_sources.report_use(directory, spec, *uses)


def _pad_for_mesh(
  layout: step_layout.StepLayout, name: str, mesh: Mesh
) -> step_layout.Padded:
  """Pads a step's rows for a mesh; logs a line if most of them are padding."""
  padded = layout.padded(mesh)
  if padded.rows >= 2 * layout.rows:
    log_line(
      f"{name}: a step has {layout.rows} rows and {padded.rows - layout.rows}"
      f" of padding, for {sharding.batch_shards(mesh)} shards (data × fsdp)"
    )
  return padded


def _make_share_metrics(
  name: str,
  demonstrations: _SourceRows,
  documents: _SourceRows | None,
  fraction: float,
  spec: batching.BatchSpec,
  total_steps: int,
) -> Callable[[int], dict[str, float]]:
  """Logs the share of pretraining data in the run.

  Args:
    name: name of the stage.
    demonstrations: rows of demonstrations.
    documents: rows of pretraining documents; None for no metrics.
    fraction: fraction of pretraining rows.
    spec: the batches of demonstrations.
    total_steps: number of updates.

  Returns:
    step → share of pretraining data in the steps up to it, as metrics.
  """
  if documents is None:
    return lambda step: {}
  shares = batching.mixed_shares(
    demonstrations.rows,
    documents.rows,
    fraction,
    spec,
    steps=total_steps,
    pretraining_mix=documents.mix,
  )
  log_line(
    f"{name}: {shares[-1, 0]:.1%} of the rows and {shares[-1, 1]:.1%} of the"
    " tokens that carry loss are pretraining data"
  )
  keys = ("pretraining_row_share", "pretraining_token_share")

  def metrics(step: int) -> dict[str, float]:
    return dict(zip(keys, shares[step - 1].tolist(), strict=True))

  return metrics
