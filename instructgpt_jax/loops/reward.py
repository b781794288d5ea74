"""The reward model: one pass over rankings, K completions as one element."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import config as config_lib
from instructgpt_jax import statistics
from instructgpt_jax.data import pipelines, records, transforms
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.loops import (
  inputs,
  language,
  networks,
  scoring,
  supervised,
  workdir,
)
from instructgpt_jax.models.transformer import ScalarModel
from instructgpt_jax.runtime import files
from instructgpt_jax.runtime import mesh as mesh_lib
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import PyTree

_accuracy = jax.jit(reward_step.count_pairs, static_argnames="model")


def train(config: config_lib.RewardExperiment, directory: str) -> None:
  """Trains a reward model.

  Args:
    config: the experiment.
    directory: its workdir.
  """
  if workdir.completed(directory):
    return
  section = config.reward
  inputs.divides(section.microbatch, section.batch_size, "reward.microbatch")
  inputs.fits(config.data, config.model.context)
  if section.normalize and not config.data.demonstrations:
    raise UserError(
      "demonstrations are needed, on which the mean reward becomes 0",
      field="data.demonstrations",
      remedy="give --data.demonstrations=PATH, or --reward.normalize=false",
    )
  tokenizer = workdir.stage_tokenizer(
    directory, config, lambda: inputs.training_texts(config.data)
  )
  model = ScalarModel(workdir.model_config(config, tokenizer, section.dropout))
  splits = inputs.rankings(config.data, tokenizer)
  train_set, valid = (
    transforms.encode_rankings(part, tokenizer, config.data)
    for part in (splits.train, splits.valid)
  )
  demonstrations = []
  if section.normalize:
    demonstrations = inputs.demonstrations(config.data, tokenizer).train
  mesh = mesh_lib.make_mesh(config.mesh)
  rows = pipelines.ranking_rows(train_set, model.config.width)
  batches = pipelines.ranking_batches(
    train_set,
    batch_size=section.batch_size,
    seed=config.seed,
    epochs=section.epochs,
    pad_id=tokenizer.pad_id,
    buckets=_buckets(train_set, rows),
    rows=rows,
    **language.shard(),
  )
  total_steps = -(-section.epochs * len(train_set) // section.batch_size)
  optimizer = state_lib.make_optimizer(config.optimizer, total_steps)
  key = jax.random.key(config.seed)
  if config.init_from:
    stage = workdir.open_stage(config.init_from, field="init_from")
    params = networks.scalar_from_stage(model, stage, key, mesh)
  else:
    params = networks.fresh(model, key, mesh)
  state = networks.train_state(model, params, optimizer, mesh)
  step_fn = jax.jit(
    functools.partial(
      reward_step.train_step,
      model=model,
      optimizer=optimizer,
      seed=config.seed,
      microbatch=section.microbatch,
    ),
    donate_argnums=0,
    out_shardings=(networks.shardings(model, state, mesh), None),
  )
  workdir.put_tokenizer(directory, tokenizer)
  fitted = supervised.fit(
    state,
    step_fn,
    batches,
    workdir=directory,
    name="reward",
    run=config.run,
    total_steps=total_steps,
    mesh=mesh,
    learning_rate=state_lib.schedule(config.optimizer, total_steps),
  )
  params, summary = fitted.state.params, dict(fitted.summary)
  if demonstrations:
    scores = demonstration_scores(
      model, params, demonstrations, tokenizer, config.data, mesh
    )
    params = reward_step.shift_bias(params, np.float32(scores.mean()))
    summary["shift"] = float(scores.mean())
  if valid:
    interval = accuracy(model, params, valid, tokenizer, mesh)
    summary["accuracy"] = interval.as_dict()
    workdir.say(f"reward: {interval} of {len(valid)} held-out rankings' pairs")
  workdir.save_stage_model(
    directory,
    params,
    kind=workdir.SCALAR,
    model=model.config,
    data=config.data,
    stage="reward",
    step=total_steps,
  )
  files.mark_complete(directory, summary)


def accuracy(
  model: ScalarModel,
  params: PyTree,
  rankings: Sequence[transforms.EncodedRanking],
  tokenizer: Tokenizer,
  mesh: Mesh,
  batch_size: int = 16,
) -> statistics.Interval:
  """Share of pairs in the labelers' order; ties of theirs are no pairs.

  The interval's units are distinct prompts.
  """
  size = mesh_lib.fill(batch_size, mesh)
  rows = pipelines.ranking_rows(rankings, model.config.width)
  parts = [
    jax.device_get(_accuracy(model, params, mesh_lib.put_batch(batch, mesh)))
    for batch in pipelines.ranking_batches(
      rankings,
      batch_size=size,
      pad_id=tokenizer.pad_id,
      buckets=_buckets(rankings, rows),
      rows=rows,
      shuffle=False,
    )
  ]
  correct, pairs = (
    np.concatenate(column)[: len(rankings)].astype(np.float64)
    for column in zip(*parts, strict=True)
  )
  place: dict[bytes, int] = {}
  units = [place.setdefault(r.prompt.tobytes(), len(place)) for r in rankings]
  return statistics.ratio_interval(
    np.bincount(units, weights=correct), np.bincount(units, weights=pairs)
  )


def demonstration_scores(
  model: ScalarModel,
  params: PyTree,
  demonstrations: Sequence[records.Demonstration],
  tokenizer: Tokenizer,
  data: config_lib.Data,
  mesh: Mesh,
) -> np.ndarray:
  """[D] float32 score of each demonstration."""
  examples = [
    scoring.Example(*transforms.example(prompt, completion, mask_prompt=True))
    for prompt, completion in transforms.encode_demonstrations(
      demonstrations, tokenizer, data
    )
  ]
  return scoring.score(model, params, examples, mesh)


def _buckets(
  rankings: Sequence[transforms.EncodedRanking], rows: int
) -> tuple[int, ...]:
  longest = max(pipelines.ranking_width(r, rows) for r in rankings)
  return transforms.bucket_sizes(longest)
