"""The reward model: one pass over rankings, K completions as one element."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding, statistics
from instructgpt_jax.configs import checks
from instructgpt_jax.data import encoding, ranking_packing, records
from instructgpt_jax.data.batch_source import BatchSpec
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import attention, lora
from instructgpt_jax.models.transformer import ScalarModel
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  networks,
  scoring,
  stage_model,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.types import PyTree

HELD_OUT = "held_out.json"

_count_pairs = mesh_lib.jit_per_mesh(
  reward_step.count_pairs, static_argnames="model"
)


class Counts(NamedTuple):
  """Held-out pairs of each distinct prompt."""

  correct: np.ndarray  # [prompts] float64, in the labelers' order
  pairs: np.ndarray  # [prompts] float64
  loss: np.ndarray  # [prompts] float64, summed over the pairs

  @property
  def accuracy(self) -> statistics.Interval:
    """Share of pairs in the labelers' order."""
    return statistics.ratio_interval(self.correct, self.pairs, share=True)


def train(config: configs.RewardExperiment, directory: str) -> None:
  """Trains a reward model.

  Args:
    config: the experiment.
    directory: its workdir.
  """
  if stage_model.is_complete(directory):
    return
  section = config.reward
  supervised.require_measure(config.run, [])
  checks.check_divides(
    section.microbatch, section.batch_size, "reward.microbatch"
  )
  checks.check_lengths(config.data, config.model.max_seq_len)
  if section.normalize and not config.data.demonstrations:
    raise UserError(
      "demonstrations are needed, on which the mean reward becomes 0",
      field="data.demonstrations",
      fix="give --data.demonstrations=PATH, or --reward.normalize=false",
    )
  tokenizer = inheritance.stage_tokenizer(
    directory, config, lambda: inputs.training_texts(config.data)
  )
  model = ScalarModel(
    inheritance.model_config(config, tokenizer, section.dropout)
  )
  chosen = _chosen(
    inputs.rankings(config.data, tokenizer), section, config.seed
  )
  train_set, valid, left_out = (
    encoding.encode_rankings(part, tokenizer, config.data) for part in chosen
  )
  if section.pairs:
    train_set = encoding.split_into_pairs(train_set)
  sources = {
    "data.comparisons": fingerprint.fingerprint_source(
      config.data.comparisons,
      [train_set, valid, left_out],
      train=len(chosen.train),
      valid=len(chosen.valid),
      left_out=len(chosen.left_out),
    )
  }
  demonstrations = []
  if section.normalize:
    demonstrations = inputs.demonstrations(config.data, tokenizer).train
    sources["data.demonstrations"] = fingerprint.fingerprint_source(
      config.data.demonstrations,
      [(d.turns, d.completion) for d in demonstrations],
      train=len(demonstrations),
    )
  mesh = mesh_lib.make_mesh(config.mesh)
  spec = BatchSpec(
    batch_size=section.batch_size,
    seed=config.seed,
    epochs=section.epochs,
    **transfer.process_shard(section.batch_size, mesh),
  )
  size = section.microbatch or section.batch_size
  batches = ranking_packing.ranking_batches(
    train_set,
    spec,
    layout=layout_of(
      train_set,
      model.config,
      spec,
      parts=max(section.batch_size // size, 1) * sharding.batch_shards(mesh),
    ),
    pad_id=tokenizer.pad_id,
  )
  total_steps = -(-section.epochs * len(train_set) // section.batch_size)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, total_steps)
  key = jax.random.key(config.seed)
  stage = None
  if config.init_from:
    stage = stage_model.open_stage(
      config.init_from, field="init_from", run=config
    )
  frozen, params, adapts = networks.init_params_from(model, stage, key, mesh)
  state = networks.train_state(model, params, optimizer, mesh)
  step_fn = supervised.step_program(
    reward_step.train_step,
    model,
    optimizer,
    state,
    mesh,
    seed=config.seed,
    microbatch=section.microbatch,
  )
  tokenizer_store.put_tokenizer(directory, tokenizer)
  fitted = supervised.fit(
    state,
    lambda state, batch: step_fn(state, batch, frozen),
    batches,
    workdir=directory,
    name="reward",
    run=config.run,
    total_steps=total_steps,
    mesh=mesh,
    learning_rate=optimizer_lib.make_schedule(config.optimizer, total_steps),
    fingerprint=fingerprint.Fingerprint(
      {"rankings": section.batch_size, "steps": total_steps}, sources
    ).with_base(adapts.checksum if adapts else None),
  )
  summary = dict(fitted.summary)
  params = lora.merge_trees(frozen, fitted.state.params)
  if demonstrations:
    scores = demonstration_scores(
      model, params, demonstrations, tokenizer, config.data, mesh
    )
    params = reward_step.shift_bias(params, np.float32(scores.mean()))
    summary["shift"] = float(scores.mean())
  kept: dict[str, Any] = {}
  for name, held in (("", valid), ("left_out_", left_out)):
    if held:
      counts = count_held_out(model, params, held, tokenizer, mesh)
      kept[name + "pairs"] = counts._asdict()
      summary[name + "accuracy"] = counts.accuracy.as_dict()
      summary[name + "loss"] = float(counts.loss.sum() / counts.pairs.sum())
      log_line(
        f"reward: {counts.accuracy} of {len(held)} held-out rankings' pairs"
      )
  files.write_json_atomic(pathlib.Path(directory) / HELD_OUT, kept, indent=None)
  stage_model.save_stage_model(
    directory,
    params,
    kind=stage_model.SCALAR,
    model=model.config,
    data=config.data,
    adapts=adapts,
    starts_from=stage,
    stage="reward",
    step=total_steps,
  )
  files.mark_complete(directory, summary)


def layout_of(
  rankings: Sequence[encoding.EncodedRanking],
  model: configs.Model,
  spec: BatchSpec,
  *,
  parts: int = 1,
  platform: str = "",
) -> ranking_packing.Layout:
  """The cheapest layout on a platform; here when empty.

  Args:
    rankings: encoded rankings.
    model: the network.
    spec: the batches.
    parts: number of parts that a batch is split into by devices and by
      microbatches.
    platform: JAX's name of the platform.
  """
  platform = platform or jax.default_backend()
  return ranking_packing.choose_layout(
    rankings,
    spec,
    d_model=model.d_model,
    num_scores=functools.partial(attention.num_scores, platform, model),
    parts=parts,
  )


def count_held_out(
  model: ScalarModel,
  params: PyTree,
  rankings: Sequence[encoding.EncodedRanking],
  tokenizer: Tokenizer,
  mesh: Mesh,
  batch_size: int = 16,
) -> Counts:
  """How a reward model orders rankings; labelers' ties are no pairs."""
  spec = BatchSpec(
    batch_size=mesh_lib.round_up_to_shards(batch_size, mesh),
    epochs=1,
    shuffle=False,
  )
  layout = layout_of(
    rankings, model.config, spec, parts=sharding.batch_shards(mesh)
  )
  place: dict[bytes, int] = {}
  units = [place.setdefault(r.prompt.tobytes(), len(place)) for r in rankings]
  totals = np.zeros((len(Counts._fields), len(place)))
  for batch in ranking_packing.ranking_batches(
    rankings, spec, layout=layout, pad_id=tokenizer.pad_id
  ):
    found = transfer.allgather(
      _count_pairs(mesh)(
        model, params, transfer.put_replicated_batch(batch, mesh)
      )
    )
    real = batch.ids >= 0
    unit = np.asarray(units)[batch.ids[real]]
    for total, counted in zip(totals, found, strict=True):
      np.add.at(total, unit, counted[real])
  return Counts(*totals)


class _Chosen(NamedTuple):
  train: list[records.Ranking]
  valid: list[records.Ranking]
  left_out: list[records.Ranking]


def _chosen(
  splits: inputs.Splits, section: configs.Reward, seed: int
) -> _Chosen:
  """The rankings to train on, to test on, and of labelers left out."""
  train, valid = list(splits.train), list(splits.valid)
  others: list[records.Ranking] = []
  names = {n for n in section.leave_out.split(",") if n}
  known = {r.labeler_id for r in train + valid}
  if names - known:
    raise UserError(
      f"no ranking is of {sorted(names - known)[0]!r}",
      field="reward.leave_out",
      fix="give labeler_ids of the rankings: "
      + ", ".join(sorted(filter(None, known))[:9]),
    )
  if names:
    others = [r for r in valid if r.labeler_id in names]
    train, valid = (
      [r for r in part if r.labeler_id not in names] for part in (train, valid)
    )
  rng = np.random.RandomState([seed & 0xFFFFFFFF, 7])
  if 0 < section.max_rankings < len(train):
    rows = np.sort(rng.permutation(len(train))[: section.max_rankings])
    train = [train[i] for i in rows]
  if section.max_completions:
    train = [_fewer(r, section.max_completions, rng) for r in train]
  if not train:
    raise UserError(
      "no ranking is left to train on",
      field="reward.leave_out",
      fix="leave out fewer labelers",
    )
  return _Chosen(train, valid, others)


def _fewer(
  ranking: records.Ranking, most: int, rng: np.random.RandomState
) -> records.Ranking:
  rows = np.sort(rng.permutation(len(ranking.completions))[:most])
  return dataclasses.replace(
    ranking,
    completions=tuple(ranking.completions[i] for i in rows),
    ranks=tuple(ranking.ranks[i] for i in rows),
  )


def demonstration_scores(
  model: ScalarModel,
  params: PyTree,
  demonstrations: Sequence[records.Demonstration],
  tokenizer: Tokenizer,
  data: configs.Data,
  mesh: Mesh,
) -> np.ndarray:
  """[D] float32 score of each demonstration."""
  examples = [
    scoring.Example(
      *encoding.with_loss_weights(prompt, completion, mask_prompt=True)
    )
    for prompt, completion in encoding.encode_demonstrations(
      demonstrations, tokenizer, data
    )
  ]
  return scoring.score(model, params, examples, mesh)
