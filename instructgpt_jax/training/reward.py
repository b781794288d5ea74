"""The reward model (paper, section 3.5).

`train` passes once over the rankings: all K completions of a prompt are in one
batch element. Then it shifts the head's bias, so that demonstrations score 0 on
average, and measures accuracy on held-out rankings.
"""

from __future__ import annotations

import functools
import math
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
from instructgpt_jax.data.ranking_source import AnyRankings, num_completions
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import ScalarModel
from instructgpt_jax.models.kernels import attention as attention_kernels
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  mixed_sources,
  scoring,
  stage_model,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.training import rankings as rankings_lib
from instructgpt_jax.types import PyTree

HELD_OUT_FILE = "held_out.json"  # counts of held-out pairs, in the workdir

_count_pairs = mesh_lib.jit_per_mesh(
  reward_step.count_pairs, static_argnames="model"
)


class HeldOutCounts(NamedTuple):
  """Held-out pairs of completions, by distinct prompt: [prompts] float64."""

  correct: np.ndarray  # pairs that the model orders as the labelers do
  pairs: np.ndarray  # all pairs
  loss: np.ndarray  # sum of the pairs' losses

  @property
  def accuracy(self) -> statistics.Interval:
    """Share of pairs in the labelers' order, with its interval."""
    return statistics.ratio_interval(self.correct, self.pairs, share=True)


def train(config: configs.RewardExperiment, directory: str) -> None:
  """Trains a reward model on rankings.

  Args:
    config: the experiment.
    directory: its workdir.
  """
  if stage_model.is_complete(directory):
    return
  _check_settings(config)
  tokenizer = inheritance.stage_tokenizer(
    directory, config, lambda: inputs.training_texts(config.data)
  )
  model = ScalarModel(
    inheritance.model_config(config, tokenizer, config.reward.dropout)
  )
  data = _open_data(config, tokenizer)
  mesh = mesh_lib.make_mesh(config.mesh)
  batches = _training_batches(config, directory, data, model, tokenizer, mesh)
  total_steps = math.ceil(
    config.reward.epochs * len(data.rankings.train) / config.reward.batch_size
  )
  stage = None
  if config.init_from:
    stage = stage_model.open_stage(
      config.init_from, field="init_from", run=config
    )
  start = supervised.start_training(
    config,
    model,
    functools.partial(
      reward_step.train_step,
      label_smoothing=config.reward.label_smoothing,
      margin=config.reward.margin,
      margin_coef=config.reward.logits_per_grade,
    ),
    stage,
    mesh,
    total_steps=total_steps,
    microbatch=config.reward.microbatch or 0,
  )
  tokenizer_store.put_tokenizer(directory, tokenizer)
  counts = {"rankings": config.reward.batch_size, "steps": total_steps}
  run = supervised.SupervisedRun(
    directory=directory,
    name="reward",
    settings=config.run,
    mesh=mesh,
    batches=batches,
    total_steps=total_steps,
    learning_rate=optimizer_lib.make_schedule(config.optimizer, total_steps),
    fingerprint=fingerprint.Fingerprint(counts, data.sources).with_base(
      start.base_checksum
    ),
  )
  result = supervised.fit(run, start.state, start.step)
  params = lora.merge_trees(start.params.frozen, result.state.params)
  summary = dict(result.summary)
  if data.demonstrations:
    params, summary["shift"] = _normalize_bias(
      config, model, params, data.demonstrations, tokenizer, mesh
    )
  summary |= _evaluate_held_out(directory, model, params, data, tokenizer, mesh)
  _save(directory, config, model, params, start, total_steps)
  files.mark_complete(directory, summary)


def _check_settings(config: configs.RewardExperiment) -> None:
  """Refuses settings that do not fit each other."""
  section = config.reward
  supervised.require_measured(config.run, [])
  checks.check_divides(
    section.microbatch, section.batch_size, "reward.microbatch"
  )
  checks.check_margin(section)
  checks.check_lengths(config.data, config.model.max_seq_len)
  if section.normalize and not config.data.demonstrations:
    raise UserError(
      "demonstrations are needed, whose mean reward becomes 0",
      field="data.demonstrations",
      fix="give --data.demonstrations=PATH, or --reward.normalize=false",
      code="no_demonstrations",
    )


class _RewardData(NamedTuple):
  """Encoded rankings, demonstrations and the fingerprints of their sources."""

  rankings: rankings_lib.Rankings
  demonstrations: Sequence[records.Demonstration]
  sources: dict[str, fingerprint.Source]


def _open_data(
  config: configs.RewardExperiment, tokenizer: Tokenizer
) -> _RewardData:
  """Opens the rankings, and reads the demonstrations."""
  rankings = rankings_lib.open_rankings(config, tokenizer)
  sources = {rankings_lib.FIELD: rankings.fingerprint}
  demonstrations: Sequence[records.Demonstration] = ()
  if config.reward.normalize:
    demonstrations = inputs.demonstrations(config.data, tokenizer).train
    sources["data.demonstrations"] = inputs.fingerprint_records(
      config.data,
      "demonstrations",
      lambda: [(d.turns, d.completion) for d in demonstrations],
      train=len(demonstrations),
    )
  return _RewardData(rankings, demonstrations, sources)


def _training_batches(
  config: configs.RewardExperiment,
  directory: str,
  data: _RewardData,
  model: ScalarModel,
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> Any:
  """Makes batches of rankings, in the layout with the fewest FLOPs."""
  section, rankings = config.reward, data.rankings
  spec = BatchSpec(
    batch_size=section.batch_size,
    seed=config.seed,
    epochs=section.epochs,
    mix=rankings.mix,
    **transfer.get_process_shard(section.batch_size, mesh),
  )
  counts = rankings.train.token_counts
  amounts = {
    "completions": num_completions(rankings.train),
    "tokens": np.maximum(counts, 0).sum(axis=1),
  }
  total = section.epochs * len(rankings.train)
  use = mixed_sources.Use(
    rankings.source, rankings.mix, "rankings", total, amounts
  )
  mixed_sources.report_use(directory, spec, use)
  microbatch = section.microbatch or section.batch_size
  num_microbatches = max(section.batch_size // microbatch, 1)
  layout = choose_layout(
    rankings.train,
    model.config,
    spec,
    num_shards=num_microbatches * sharding.batch_shards(mesh),
  )
  return ranking_packing.ranking_batches(
    rankings.train,
    spec,
    layout=layout,
    pad_id=tokenizer.pad_id,
    with_grades=section.margin == "grade",
  )


def _normalize_bias(
  config: configs.RewardExperiment,
  model: ScalarModel,
  params: PyTree,
  demonstrations: Sequence[records.Demonstration],
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> tuple[PyTree, float]:
  """Shifts the bias so that demonstrations score 0 on average (3.5).

  Returns:
    The parameters, and the mean score that was subtracted.
  """
  mean = score_demonstrations(
    model, params, demonstrations, tokenizer, config.data, mesh
  ).mean()
  return reward_step.shift_bias(params, np.float32(mean)), float(mean)


def _evaluate_held_out(
  directory: str,
  model: ScalarModel,
  params: PyTree,
  data: _RewardData,
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> dict[str, Any]:
  """Measures accuracy and loss on held-out rankings.

  It writes the counts of each prompt into `HELD_OUT_FILE`.

  Returns:
    Accuracy and loss of validation rankings, and with the prefix "left_out_"
    those of labelers that are left out of training.
  """
  summary: dict[str, Any] = {}
  counts_by_split: dict[str, Any] = {}
  splits = (("", data.rankings.valid), ("left_out_", data.rankings.left_out))
  for prefix, rankings in splits:
    if len(rankings):
      counts = count_held_out(model, params, rankings, tokenizer, mesh)
      counts_by_split[prefix + "pairs"] = counts._asdict()
      summary[prefix + "accuracy"] = counts.accuracy.as_dict()
      summary[prefix + "loss"] = float(counts.loss.sum() / counts.pairs.sum())
      log_line(
        f"reward: {counts.accuracy} of {len(rankings)} held-out rankings' pairs"
      )
  path = pathlib.Path(directory) / HELD_OUT_FILE
  files.write_json_atomic(path, counts_by_split, indent=None)
  return summary


def _save(
  directory: str,
  config: configs.RewardExperiment,
  model: ScalarModel,
  params: PyTree,
  start: supervised.Start,
  step: int,
) -> None:
  """Writes the trained model as a stage."""
  stage_model.save_stage_model(
    directory,
    params,
    kind=stage_model.SCALAR,
    model=model.config,
    data=config.data,
    adapts=start.params.adapts,
    starts_from=start.stage,
    stage="reward",
    step=step,
  )


def choose_layout(
  rankings: AnyRankings,
  model: configs.Model,
  spec: BatchSpec,
  *,
  num_shards: int = 1,
  platform: str = "",
) -> ranking_packing.Layout:
  """Chooses the layout of rankings with the fewest FLOPs on a platform.

  Args:
    rankings: encoded rankings.
    model: the network.
    spec: the batches.
    num_shards: number of pieces of a batch: batch shards times microbatches.
    platform: JAX's name of the platform; "" is the default backend.
  """
  platform = platform or jax.default_backend()
  return ranking_packing.choose_layout(
    rankings,
    spec,
    d_model=model.d_model,
    num_scores=functools.partial(attention_kernels.num_scores, platform, model),
    num_shards=num_shards,
  )


def count_held_out(
  model: ScalarModel,
  params: PyTree,
  rankings: AnyRankings,
  tokenizer: Tokenizer,
  mesh: Mesh,
  batch_size: int = 16,
) -> HeldOutCounts:
  """Counts the pairs that a reward model orders as the labelers do."""
  spec = BatchSpec(
    batch_size=mesh_lib.round_up_to_shards(batch_size, mesh),
    epochs=1,
    shuffle=False,
  )
  layout = choose_layout(
    rankings, model.config, spec, num_shards=sharding.batch_shards(mesh)
  )
  prompts: dict[bytes, int] = {}  # index of each distinct prompt
  prompt_indices = np.array(
    [
      prompts.setdefault(rankings[i].prompt.tobytes(), len(prompts))
      for i in range(len(rankings))
    ]
  )
  totals = np.zeros((len(HeldOutCounts._fields), len(prompts)))
  for batch in ranking_packing.ranking_batches(
    rankings, spec, layout=layout, pad_id=tokenizer.pad_id
  ):
    counts = transfer.allgather(
      _count_pairs(mesh)(model, params, transfer.put_full_batch(batch, mesh))
    )
    is_ranking = batch.ids >= 0  # the others are padding
    indices = prompt_indices[batch.ids[is_ranking]]
    for total, batch_counts in zip(totals, counts, strict=True):
      np.add.at(total, indices, batch_counts[is_ranking])
  return HeldOutCounts(*totals)


def score_demonstrations(
  model: ScalarModel,
  params: PyTree,
  demonstrations: Sequence[records.Demonstration],
  tokenizer: Tokenizer,
  data: configs.Data,
  mesh: Mesh,
) -> np.ndarray:
  """Computes the reward of each demonstration: [D] float32."""
  examples = [
    scoring.Example(
      *encoding.with_loss_weights(prompt, completion, mask_prompt=True)
    )
    for prompt, completion in encoding.encode_demonstrations(
      demonstrations, tokenizer, data
    )
  ]
  return scoring.score(model, params, examples, mesh)
