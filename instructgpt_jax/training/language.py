"""Trains language models by a plan: pretraining, SFT, policy initialisation.

`training.pretrain` and `training.sft` read their data, pack them into rows, and
make a `Plan`. `train` then trains by it, with the loop of `supervised.fit`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import grain
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, statistics
from instructgpt_jax.data import batching, packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.runs import files
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.training import (
  documents,
  fingerprint,
  stage_model,
  supervised,
  task_validation,
  tokenizer_store,
)
from instructgpt_jax.training.held_out import HeldOut
from instructgpt_jax.training.samples import SampleLoop
from instructgpt_jax.types import PyTree

_token_logp = mesh_lib.jit_per_mesh(
  language_step.token_logp, static_argnames="model"
)


# What selects the parameters that a stage saves.
Selection = Literal["reward", "loss", "last"]
_SELECTION_METRICS = {"loss": "valid_loss", "reward": "valid_rm_score"}

# (model, parameters) → metrics.
Measure = Callable[[LanguageModel, PyTree], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
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
  select: Selection = "last"
  measure: Measure | None = None
  step_metrics: Callable[[int], dict[str, float]] = lambda step: {}
  sampled: HeldOut | None = None
  samples_every: int = 0
  make_tasks: Callable[
    [Callable[[PyTree], PyTree]], task_validation.TaskLoop | None
  ] = lambda all_params: None

  @property
  def has_validation(self) -> bool:
    """Whether there are validation rows."""
    return any(len(rows["tokens"]) for rows in self.valid_rows.values())


def train(
  config: configs.PretrainExperiment | configs.SftExperiment,
  directory: str,
  model: LanguageModel,
  tokenizer: Tokenizer,
  plan: Plan,
  mesh: Mesh,
) -> None:
  """Trains, and saves the parameters that `plan.select` chooses.

  Args:
    config: the experiment.
    directory: its workdir.
    model: the network.
    tokenizer: the run's tokenizer, which the stage gets.
    plan: batches, length and evaluations.
    mesh: mesh of the run.
  """
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
  model: LanguageModel, params: PyTree, plan: Plan, mesh: Mesh
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
  size = documents.VALID_ROWS // len(valid_rows)
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
