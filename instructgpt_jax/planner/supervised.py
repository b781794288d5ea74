"""Workloads of pretraining, SFT and the reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import configs
from instructgpt_jax.configs import checks
from instructgpt_jax.data import encoding, ranking_packing
from instructgpt_jax.data.batch_source import BatchSpec
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed.mesh import AnyMesh
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.planner import shapes
from instructgpt_jax.planner.workload import Program, Workload
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.training import reward as reward_loop
from instructgpt_jax.training import step_layout, supervised
from instructgpt_jax.types import RankingBatch

COMPLETIONS = 9  # K; labelers of the paper rank 4 to 9


def pretrain_workload(
  config: configs.PretrainExperiment, mesh: AnyMesh
) -> Workload:
  """Returns the workload of pretraining."""
  section = config.pretrain
  checks.check_divides(
    section.microbatch, section.batch_size, "pretrain.microbatch"
  )
  mesh_lib.check_divisible(section.batch_size, mesh)
  length = checks.row_length(
    section.sequence, config.model.max_seq_len, "pretrain.sequence"
  )
  return _language_workload(config, section, mesh, section.batch_size, length)


def sft_workload(config: configs.SftExperiment, mesh: AnyMesh) -> Workload:
  """Returns the workload of SFT or of the policy's initialisation."""
  section = config.sft
  layout = step_layout.step_layout(
    section, section.batch_size, section.batch_size
  )
  rows, microbatch = layout.padded(mesh)
  section = dataclasses.replace(section, microbatch=microbatch)
  length = checks.row_length(
    section.sequence, config.model.max_seq_len, "sft.sequence"
  )
  return _language_workload(config, section, mesh, rows, length)


def _language_workload(
  config: configs.PretrainExperiment | configs.SftExperiment,
  section: configs.Pretrain | configs.Sft,
  mesh: AnyMesh,
  rows: int,
  length: int,
) -> Workload:
  """Returns the workload of language modelling, with full rows."""
  return _supervised_workload(
    config,
    section,
    mesh,
    LanguageModel,
    language_step.train_step,
    shapes.language_batch(mesh, rows, length),
    rows=rows,
    logits=length,
    examples=rows,
    example_name="rows",
  )


def reward_workload(
  config: configs.RewardExperiment, mesh: AnyMesh, platform: str
) -> Workload:
  """Returns the workload of the reward model.

  Each prompt has K completions, all of the greatest length.
  """
  section, data = config.reward, config.data
  prompts = section.batch_size
  mesh_lib.check_divisible(prompts, mesh)
  checks.check_divides(section.microbatch, prompts, "reward.microbatch")
  count = section.max_completions or COMPLETIONS
  longest = encoding.EncodedRanking(
    [0] * data.max_prompt_tokens,
    [[0] * data.max_response_tokens] * count,
    list(range(count)),
  )
  # Rankings of equal length are not packed.
  rows = reward_loop.choose_layout(
    [longest],
    config.model,
    BatchSpec(batch_size=1, epochs=1),
    platform=platform,
  ).rows_per_group
  length = ranking_packing.row_length(longest, rows)
  tokens, labels, ids = (
    shapes.int32_shape(prompts, rows, length),
    shapes.int32_shape(prompts, 1, count),
    shapes.int32_shape(prompts, 1),
  )
  batch = shapes.shard_batch(
    mesh,
    RankingBatch(
      tokens=tokens,
      segments=tokens,
      positions=tokens,
      ends=labels,
      ranks=labels,
      valid=jax.ShapeDtypeStruct(labels.shape, jnp.bool_),
      ids=ids,
      span=ranking_packing.attention_span(
        [longest], rows, one_ranking_per_group=True
      ),
    ),
  )
  return _supervised_workload(
    config,
    section,
    mesh,
    ScalarModel,
    reward_step.train_step,
    batch,
    rows=prompts * rows,
    logits=0,
    examples=prompts * count * (count - 1) // 2,
    example_name="comparisons",
  )


def _supervised_workload(
  config: configs.Experiment,
  section: configs.Pretrain | configs.Sft | configs.Reward,
  mesh: AnyMesh,
  network: type[LanguageModel] | type[ScalarModel],
  train_step: Callable[..., Any],
  batch: Any,
  *,
  rows: int,
  logits: int,
  examples: int,
  example_name: str,
) -> Workload:
  """Returns the workload of a supervised step.

  Args:
    config: the experiment.
    section: settings of the stage.
    mesh: mesh of the devices.
    network: class of the trained network.
    train_step: the pure step.
    batch: shapes of a batch of B examples; `tokens` [B, …, T].
    rows: rows of T tokens in the batch.
    logits: tokens of a row that have logits.
    examples: examples of a step.
    example_name: plural noun for the examples.
  """
  shape = shapes.with_vocabulary(config.model, config, mesh)
  shape = dataclasses.replace(shape, dropout=section.dropout)
  model = network(shape)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, shapes.UPDATES)
  trained = shapes.abstract_network(model, optimizer, mesh)
  length = batch.tokens.shape[-1]
  microbatch = (section.microbatch or 0) * rows // batch.tokens.shape[0]

  def step() -> Any:
    function = supervised.step_program(
      train_step,
      model,
      optimizer,
      trained.state,
      mesh,
      seed=config.seed,
      microbatch=section.microbatch or 0,
    )
    return function, (trained.state, batch, trained.frozen)

  train_pass = shapes.training_pass(
    trained,
    shape,
    rows,
    microbatch,
    length=length,
    logits=logits,
    span=batch.span if isinstance(batch, RankingBatch) else None,
  )
  return Workload(
    unit="step",
    examples=examples,
    example_name=example_name,
    tokens=batch.tokens.size,
    parameters=shapes.num_params(trained.all_params),
    resident=shapes.resident_trees(trained),
    state=trained.state,
    programs=(
      Program(
        name="step",
        build=step,
        runs=1,
        loop_trips=shapes.loss_chunks(
          shape, mesh, (microbatch or rows) * logits or 1
        ),
        passes=(train_pass,),
      ),
    ),
    model=shape,
  )
