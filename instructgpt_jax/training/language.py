"""Language modelling: pretraining, SFT and policy initialisation.

`pretrain` and `sft` read the data, pack them into rows, and make a `_Plan`.
`_train` then trains by this plan, with the loop of `supervised.fit`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding, statistics
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching, encoding, packing
from instructgpt_jax.data.batch_source import SourceMix
from instructgpt_jax.data.row_source import AnyRows, row_source
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import (
  fingerprint,
  held_out,
  inheritance,
  inputs,
  mixed_sources,
  sampling,
  scoring,
  stage_model,
  step_layout,
  supervised,
  task_validation,
  tokenizer_store,
)
from instructgpt_jax.training.held_out import HeldOut, Scorer, load_scorer
from instructgpt_jax.training.samples import SampleLoop
from instructgpt_jax.types import PyTree

_token_logp = mesh_lib.jit_per_mesh(
  language_step.token_logp, static_argnames="model"
)


def pretrain(
  config: configs.PretrainExperiment,
  directory: str,
  *,
  measure_tasks: task_validation.MeasureTasks | None = None,
) -> None:
  """Trains a base model on documents.

  Args:
    config: the experiment.
    directory: its workdir.
    measure_tasks: measures the tasks of `pretrain.tasks`, see
      `task_validation`.
  """
  if stage_model.is_complete(directory):
    return
  section = config.pretrain
  checks.check_divides(
    section.microbatch, section.batch_size, "pretrain.microbatch"
  )
  length = checks.row_length(
    section.sequence, config.model.max_seq_len, "pretrain.sequence"
  )
  documents = documents_lib.open_documents(config.data)
  tokenizer = inheritance.stage_tokenizer(directory, config, documents.texts)
  model = LanguageModel(
    inheritance.model_config(config, tokenizer, section.dropout)
  )
  rows, mix = documents.pack(tokenizer, length)
  valid = documents.valid_rows(tokenizer, length)
  mesh = mesh_lib.make_mesh(config.mesh)
  spec = batching.BatchSpec(
    batch_size=section.batch_size,
    seed=config.seed,
    mix=mix,
    **transfer.get_process_shard(section.batch_size, mesh),
  )
  batches = batching.language_batches(rows, spec, pad_id=tokenizer.pad_id)
  total_rows = section.steps * section.batch_size
  mixed_sources.report_use(
    directory,
    spec,
    mixed_sources.use_of_rows(documents.source, rows, mix, total_rows),
  )
  plan = _Plan(
    name="pretrain",
    batches=batches,
    valid_rows=valid,
    total_steps=section.steps,
    microbatch=section.microbatch or 0,
    eval_every=section.eval_every,
    fingerprint=fingerprint.Fingerprint(
      {"rows": section.batch_size, "steps": section.steps},
      {
        "data.pretraining": documents.fingerprint(
          [rows, *valid.values()], "train", "valid"
        )
      },
    ),
    make_tasks=lambda all_params: task_validation.make_loop(
      section, measure_tasks, model, all_params, tokenizer, mesh
    ),
  )
  _train(config, directory, model, tokenizer, plan, mesh)


def sft(
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
    _plan_sft(config, directory, name, tokenizer, demonstrations, layout, mesh),
    select=select,
    measure=measure,
    sampled=_make_sampled(config, model, tokenizer, records, scorer, mesh),
    samples_every=section.samples_every or 0,
    make_tasks=lambda all_params: task_validation.make_loop(
      section, measure_tasks, model, all_params, tokenizer, mesh
    ),
  )
  _train(config, directory, model, tokenizer, plan, mesh)


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


def _plan_sft(
  config: configs.SftExperiment,
  directory: str,
  name: str,
  tokenizer: Tokenizer,
  demonstrations: _SourceRows,
  layout: step_layout.StepLayout,
  mesh: Mesh,
) -> _Plan:
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
  documents, step_metrics = None, _no_metrics
  if section.reward_model:  # It selects the parameters that are saved.
    model_source = fingerprint.fingerprint_model(section.reward_model)
    sources["sft.reward_model"] = model_source
  if section.pretraining_fraction:
    documents = _pack_documents(config, tokenizer)
    sources["data.pretraining"] = documents.fingerprint
    step_metrics = _make_share_metrics(
      name, demonstrations, documents, layout.fraction, spec, total_steps
    )
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
  return _Plan(
    name=name,
    batches=batches,
    valid_rows=demonstrations.valid,
    total_steps=total_steps,
    microbatch=padded.microbatch,
    eval_every=steps_per_epoch,
    fingerprint=fingerprint.Fingerprint(counts, sources, counted=False),
    step_metrics=step_metrics,
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


def _no_metrics(step: int) -> dict[str, float]:
  del step
  return {}


def _no_tasks(all_params: Callable[[PyTree], PyTree]) -> None:
  del all_params


def _make_share_metrics(
  name: str,
  demonstrations: _SourceRows,
  documents: _SourceRows,
  fraction: float,
  spec: batching.BatchSpec,
  total_steps: int,
) -> Callable[[int], dict[str, float]]:
  """Logs the share of pretraining data in the run.

  Args:
    name: name of the stage.
    demonstrations: rows of demonstrations.
    documents: rows of pretraining documents.
    fraction: fraction of pretraining rows.
    spec: the batches of demonstrations.
    total_steps: number of updates.

  Returns:
    step → share of pretraining data in the steps up to it, as metrics.
  """
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


def choose_selection(
  section: configs.Sft, name: str, has_reward_model: bool, num_valid: int
) -> _Selection:
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
) -> _Measure | None:
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


# What selects the parameters that a stage saves.
_Selection = Literal["reward", "loss", "last"]
_SELECTION_METRICS = {"loss": "valid_loss", "reward": "valid_rm_score"}

# (model, parameters) → metrics.
_Measure = Callable[[LanguageModel, PyTree], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """Batches of a training run, its length, and its evaluations.

  Attributes:
    name: name of the stage.
    batches: batches of this process.
    valid_rows: part of the source → rows of its validation records; one part
      "" where the source has no weights.
    total_steps: number of updates.
    microbatch: rows of a microbatch; 0 is the whole batch.
    eval_every: steps between two evaluations.
    fingerprint: fingerprint of the data and the batches.
    select: what selects the parameters that the stage saves.
    measure: further metrics of an evaluation, if any.
    step_metrics: step → further metrics of a step.
    sampled: prompts whose answers are written to samples.jsonl, if any.
    samples_every: steps between two sets of answers.
    make_tasks: (trained → all parameters) → measurements of tasks, if any.
  """

  name: str
  batches: grain.DatasetIterator
  valid_rows: Mapping[str, packing.Rows]
  total_steps: int
  microbatch: int
  eval_every: int
  fingerprint: fingerprint.Fingerprint
  select: _Selection = "last"
  measure: _Measure | None = None
  step_metrics: Callable[[int], dict[str, float]] = _no_metrics
  sampled: HeldOut | None = None
  samples_every: int = 0
  make_tasks: Callable[..., task_validation.TaskLoop | None] = _no_tasks

  @property
  def has_validation(self) -> bool:
    """Whether there are validation rows."""
    return any(len(rows["tokens"]) for rows in self.valid_rows.values())


def _train(
  config: configs.PretrainExperiment | configs.SftExperiment,
  directory: str,
  model: LanguageModel,
  tokenizer: Tokenizer,
  plan: _Plan,
  mesh: Mesh,
) -> None:
  """Trains, and saves the parameters that `plan.select` chooses."""
  stage = None
  if config.init_from:
    stage = stage_model.open_stage(
      config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
    )
  metrics = []
  if plan.has_validation:
    metrics.append("valid_loss")
  if plan.measure is not None:
    metrics.append("valid_rm_score")
  supervised.require_measured(config.run, metrics)
  start = supervised.start_training(
    config,
    model,
    language_step.train_step,
    stage,
    mesh,
    total_steps=plan.total_steps,
    microbatch=plan.microbatch,
  )

  def all_params(trained: PyTree) -> PyTree:
    return lora.merge_trees(start.params.frozen, trained)

  samples, sampled = None, plan.sampled
  if sampled is not None:
    samples = SampleLoop(
      lambda params: sampled.answer(all_params(params)), plan.samples_every
    )

  save = functools.partial(
    _save, directory, config, model, start=start, name=plan.name
  )
  tokenizer_store.put_tokenizer(directory, tokenizer)
  run = supervised.SupervisedRun(
    directory=directory,
    name=plan.name,
    settings=config.run,
    mesh=mesh,
    batches=plan.batches,
    total_steps=plan.total_steps,
    learning_rate=optimizer_lib.make_schedule(
      config.optimizer, plan.total_steps
    ),
    fingerprint=plan.fingerprint.with_base(start.base_checksum),
    evaluation=supervised.EvaluationLoop(
      lambda params: _evaluate(model, all_params(params), plan, mesh),
      plan.eval_every,
      _SELECTION_METRICS.get(plan.select),
      save,
    ),
    samples=samples,
    tasks=plan.make_tasks(all_params),
    step_metrics=plan.step_metrics,
  )
  result = supervised.fit(run, start.state, start.step)
  if plan.select == "last":
    save(result.state.params, plan.total_steps)
  files.mark_complete(directory, result.summary)


def _evaluate(
  model: LanguageModel, params: PyTree, plan: _Plan, mesh: Mesh
) -> dict[str, float]:
  """Computes the validation loss and further metrics of an evaluation."""
  metrics = {}
  if plan.has_validation:
    metrics = _valid_losses(model, params, plan.valid_rows, mesh)
  if plan.measure is not None:
    metrics |= plan.measure(model, params)
  return metrics


def _valid_losses(
  model: LanguageModel,
  params: PyTree,
  valid_rows: Mapping[str, packing.Rows],
  mesh: Mesh,
) -> dict[str, float]:
  """Computes the mean loss per token, of all rows and of each part's."""
  size = documents_lib.VALID_ROWS // len(valid_rows)
  sums = {}
  for part, rows in valid_rows.items():
    if not len(rows["tokens"]):
      continue
    rows = {name: value[:size] for name, value in rows.items()}
    nll, weight = row_losses(model, params, rows, mesh)
    sums[part] = np.array([nll.sum(), weight.sum()])
  total = np.sum([*sums.values()], axis=0)
  losses = {"valid_loss": total}
  if len(sums) > 1:
    losses |= {f"valid_loss/{part}": values for part, values in sums.items()}
  return {
    name: float(nll / max(weight, 1)) for name, (nll, weight) in losses.items()
  }


def _save(
  directory: str,
  config: configs.Experiment,
  model: LanguageModel,
  params: PyTree,
  step: int,
  *,
  start: supervised.Start,
  name: str,
) -> None:
  """Writes the trained model as a stage."""
  stage_model.save_stage_model(
    directory,
    params,
    kind=stage_model.LANGUAGE,
    model=model.config,
    data=config.data,
    adapts=start.params.adapts,
    starts_from=start.stage,
    stage=name,
    step=step,
  )


def row_losses(
  model: LanguageModel,
  params: PyTree,
  rows: packing.Rows,
  mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
  """Computes the weighted negative log-likelihood of each row.

  Args:
    model: the language model; its dropout stays off.
    params: its parameters.
    rows: R rows.
    mesh: mesh that batches are put onto.

  Returns:
    Σ weight · −log p and Σ weight, each [R] float64.
  """
  count = len(rows["tokens"])
  size = mesh_lib.round_up_to_shards(min(64, count), mesh)
  logp = [
    transfer.allgather(
      _token_logp(mesh)(
        params, transfer.put_full_batch(batch, mesh), model=model
      )
    )
    for batch in batching.language_batches(
      rows, batching.BatchSpec(batch_size=size, epochs=1, shuffle=False)
    )
  ]
  token_logp = np.concatenate(logp)[:count].astype(np.float64)
  weights = rows["weights"].astype(np.float64)
  weights[:, 0] = 0  # no position predicts a row's first token
  return -(weights * token_logp).sum(axis=1), weights.sum(axis=1)


def loss_interval(
  model: LanguageModel,
  params: PyTree,
  rows: packing.Rows,
  mesh: Mesh,
  *,
  resamples: int,
) -> statistics.Interval:
  """Computes the mean loss per token in nats, with its interval over rows."""
  nll, weight = row_losses(model, params, rows, mesh)
  return statistics.ratio_interval(nll, weight, resamples=resamples)
