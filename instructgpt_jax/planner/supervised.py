"""What pretraining, SFT and the reward model compile."""

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
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
from instructgpt_jax.planner import shapes
from instructgpt_jax.planner.work import Program, Work
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.training import reward as reward_loop
from instructgpt_jax.training import step_layout, supervised
from instructgpt_jax.types import RankingBatch

COMPLETIONS = 9  # K: the paper's labelers rank 4 to 9


def pretrain(config: configs.PretrainExperiment, mesh: AnyMesh) -> Work:
  """Whole rows of documents."""
  section = config.pretrain
  checks.check_divides(
    section.microbatch, section.batch_size, "pretrain.microbatch"
  )
  mesh_lib.check_divisible(section.batch_size, mesh)
  length = checks.row_length(
    section.sequence, config.model.max_seq_len, "pretrain.sequence"
  )
  return _language(config, section, mesh, section.batch_size, length)


def sft(config: configs.SftExperiment, mesh: AnyMesh) -> Work:
  """Also the policy's initialisation."""
  section = config.sft
  layout = step_layout.step_layout(
    section, section.batch_size, section.batch_size
  )
  rows, microbatch = layout.padded(mesh)
  section = dataclasses.replace(section, microbatch=microbatch)
  return _language(config, section, mesh, rows, config.model.max_seq_len)


def _language(
  config: configs.PretrainExperiment | configs.SftExperiment,
  section: configs.Pretrain | configs.Sft,
  mesh: AnyMesh,
  rows: int,
  length: int,
) -> Work:
  """Every row whole, as packed rows nearly are."""
  return _supervised(
    config,
    section,
    mesh,
    LanguageModel,
    language_step.train_step,
    shapes.language_batch(mesh, rows, length),
    rows=rows,
    logits=length,
    examples=rows,
    what="rows",
  )


def reward(
  config: configs.RewardExperiment, mesh: AnyMesh, platform: str
) -> Work:
  """K completions a prompt, all of the longest kind."""
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
  # Rankings that are all as long gain nothing from a row in common.
  rows = reward_loop.layout_of(
    [longest],
    config.model,
    BatchSpec(batch_size=1, epochs=1),
    platform=platform,
  ).rows
  length = ranking_packing.row_length(longest, rows)
  tokens, labels, ids = (
    shapes.ints(prompts, rows, length),
    shapes.ints(prompts, 1, count),
    shapes.ints(prompts, 1),
  )
  batch = shapes.split_rows(
    mesh,
    RankingBatch(
      tokens=tokens,
      segments=tokens,
      positions=tokens,
      ends=labels,
      ranks=labels,
      valid=jax.ShapeDtypeStruct(labels.shape, jnp.bool_),
      ids=ids,
      reach=ranking_packing.attention_span([longest], rows, single=True),
    ),
  )
  return _supervised(
    config,
    section,
    mesh,
    ScalarModel,
    reward_step.train_step,
    batch,
    rows=prompts * rows,
    logits=0,
    examples=prompts * count * (count - 1) // 2,
    what="comparisons",
  )


def _supervised(
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
  what: str,
) -> Work:
  """A step over and over.

  Args:
    config: the experiment.
    section: its own settings.
    mesh: where it would run.
    network: what is trained.
    train_step: by which.
    batch: of one step, B examples; `tokens` [B, …, T].
    rows: [T] of it.
    logits: tokens of a row that have some.
    examples: that a step is said to have.
    what: these are.
  """
  shape = shapes.shaped(config.model, config, mesh)
  shape = dataclasses.replace(shape, dropout=section.dropout)
  model = network(shape)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, shapes.UPDATES)
  trained = shapes.in_training(model, optimizer, mesh)
  length = batch.tokens.shape[-1]
  microbatch = section.microbatch * rows // batch.tokens.shape[0]

  def step() -> Any:
    function = supervised.step_program(
      train_step,
      model,
      optimizer,
      trained.state,
      mesh,
      seed=config.seed,
      microbatch=section.microbatch,
    )
    return function, (trained.state, batch, trained.frozen)

  one = shapes.training(
    trained,
    shape,
    rows,
    microbatch,
    length=length,
    logits=logits,
    reach=batch.reach if isinstance(batch, RankingBatch) else None,
  )
  return Work(
    unit="step",
    examples=examples,
    what=what,
    tokens=batch.tokens.size,
    parameters=shapes.parameters(trained.whole),
    held=shapes.held(trained),
    state=trained.state,
    programs=(
      Program(
        name="step",
        make=step,
        times=1,
        trips=shapes.chunks(shape, mesh, (microbatch or rows) * logits or 1),
        passes=(one,),
      ),
    ),
    model=shape,
  )
