"""PPO and PPO-ptx: the training loop (paper, section 3.5 and C.4).

Each iteration of `_iterate`:

  1. Roll out. Sample a response to each of `rollout_batch` prompts, and record
     log π(a_t) of each token: `models.sampling.generate`.
  2. Score. One pass each of reference, reward model and value network gives
       r_t = −β (log π(a_t) − log π_ref(a_t)), plus the score at the last token:
     `steps.ppo.score_rollout`, `losses.returns.token_rewards`.
  3. Advantages. The same jitted function then computes
       A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} − V_t:
     `losses.returns.gae`, then `losses.masked.whiten`.
  4. Minibatch updates, in `inner_epochs` passes over the episodes:
     `steps.ppo.update`. The policy minimises the clipped surrogate loss
       −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t):  `losses.ppo.policy_loss`,
     plus γ_ptx times the language-model loss on pretraining documents:
     `steps.language.gradients`. The value network minimises the clipped squared
     error: `losses.ppo.value_loss`.
  5. Log. One row of metrics.jsonl for each update.
  6. Save. A checkpoint, from which the same command resumes bit for bit.

`train` sets the run up, and `restore` finds where an earlier call stopped. Then
come `rollout_phase` (steps 1 to 3), `update_phase` (4), `log` (5) and `save`
(6). `training.ppo_programs` jits the functions of an iteration; `steps.ppo`
defines them.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from instructgpt_jax import configs, sharding
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.distributed import preemption, transfer
from instructgpt_jax.models import lora
from instructgpt_jax.runs import files
from instructgpt_jax.runs.metrics import MetricWriter
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.steps.ppo_gaps import Gaps
from instructgpt_jax.steps.state import Metrics, PpoState
from instructgpt_jax.training import (
  fingerprint,
  ppo_checks,
  ppo_setup,
  stage_model,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.training.ppo_setup import PpoRun
from instructgpt_jax.types import Array, Experience, PromptBatch, PyTree

SNAPSHOTS = "snapshots"  # subdirectory of intermediate policies, without EMA


def train(
  config: configs.PpoExperiment, directory: str, *, name: str = "ppo"
) -> None:
  """Trains a policy against a reward model.

  Args:
    config: the experiment; `ppo.ptx_coef` 0 is PPO without pretraining data.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".
  """
  if stage_model.is_complete(directory):
    return
  run, state = ppo_setup.set_up(config, directory, name)
  tokenizer_store.put_tokenizer(directory, run.start.stage.tokenizer)
  position = _run_iterations(run, state)
  ppo_checks.unchanged(
    run.checksums, ppo_setup.checksums(run.frozen), directory
  )
  state = position.state
  save_policy(run, directory, state.ema or state.policy.params, state)
  measures = ("reward", "kl", "ended", "response_length")
  files.mark_complete(
    directory,
    {
      "updates": run.total_updates,
      "episodes": run.iterations * config.ppo.rollout_batch,
      "seconds": position.seconds,
      **{key: position.last[key] for key in measures},
    },
  )


class ScoredRollout(NamedTuple):
  """Experience of an iteration, with the next β and the rollout's metrics."""

  experience: Experience
  next_kl_coef: Array  # β of the next iteration
  metrics: Metrics  # means over the rollout


@dataclasses.dataclass(frozen=True)
class Position:
  """How far a run is.

  Attributes:
    state: the trained state.
    updates: number of updates done.
    scored: experience of the current iteration, if it is unfinished.
    last: metrics of the last update.
    seconds: duration of the run up to here.
  """

  state: PpoState
  updates: int = 0
  scored: ScoredRollout | None = None
  last: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0


class _Outputs(NamedTuple):
  """Checkpoints, metrics, progress, SIGTERM watch and guard of a run."""

  saver: checkpoints.Checkpointer
  writer: MetricWriter
  progress: Progress
  preempted: preemption.PreemptionWatch
  guard: supervised.NonFiniteGuard


def _run_iterations(run: PpoRun, state: PpoState) -> Position:
  """Runs the iterations that an earlier call has not done.

  After SIGTERM, finishes the current update, saves a checkpoint that includes
  the iteration's experience, and raises Preempted. A later call resumes with
  the next minibatch.
  """
  settings = run.config.run
  with checkpoints.Checkpointer(
    run.directory, supervised.retention_policy(settings)
  ) as saver:
    position = restore(run, state, saver)
    first = position.updates // run.updates_per_iteration
    with (
      MetricWriter(
        run.directory,
        tensorboard=settings.tensorboard,
        resume_step=position.updates,
      ) as writer,
      Progress(
        run.iterations,
        run.name,
        initial=first,
        unit="iteration",
        compiles=True,
      ) as progress,
      preemption.PreemptionWatch() as watch,
    ):
      guard = supervised.NonFiniteGuard(run.directory)
      outputs = _Outputs(saver, writer, progress, watch, guard)
      for iteration in range(first, run.iterations):
        # The first rollout of this process checks the sampler; that of a new
        # run also checks that policy and reference are equal.
        check = iteration == first and position.scored is None
        position = _iterate(run, position, iteration, outputs, check=check)
  return position


def restore(
  run: PpoRun, state: PpoState, saver: checkpoints.Checkpointer
) -> Position:
  """Restores the newest checkpoint, if there is any, and the data's positions.

  Args:
    run: the run.
    state: the state of a new run.
    saver: the run's checkpoints.

  Raises:
    UserError: the checkpoint belongs to other data, other batches or other
      frozen models.
  """

  def abstract_checkpoint(updates: int) -> dict[str, Any]:
    if updates % run.updates_per_iteration == 0:
      return vars(state)
    return vars(state) | {"experience": _abstract_experience(run, state)}

  restored = saver.restore_latest(
    abstract_checkpoint,
    lambda extra: run.data.fingerprint.require_same(extra, run.directory),
  )
  if restored is None:
    return Position(state)
  updates, arrays, extra = restored
  scored = None
  if "experience" in arrays:
    scored = ScoredRollout(*arrays.pop("experience"), extra["rolled"])
  run.data.prompts.set_state(extra["prompts"])
  if run.data.ptx is not None:
    run.data.ptx.set_state(extra["ptx"])
  ppo_checks.unchanged(extra["marks"], run.checksums, run.directory)
  return Position(
    PpoState(**arrays), updates, scored, extra["last"], extra["seconds"]
  )


def _iterate(
  run: PpoRun,
  position: Position,
  iteration: int,
  outputs: _Outputs,
  *,
  check: bool,
) -> Position:
  """Runs one iteration, or the rest of one.

  Args:
    run: the run.
    position: how far it is.
    iteration: number of the iteration, from 0.
    outputs: where it writes.
    check: whether to check the rollout's log-probabilities.

  Raises:
    Preempted: SIGTERM has come, and the state is saved.
  """
  started = time.monotonic()
  prompts = _next_prompts(run, iteration)
  scored, gaps = position.scored, None
  if scored is None:  # steps 1 to 3
    scored, gaps = rollout_phase(run, position, prompts.batch, check=check)
  updated = update_phase(  # step 4
    run, position, iteration, scored.experience, prompts, outputs
  )
  rollout_metrics, update_metrics = jax.device_get(
    (scored.metrics, updated.metrics)
  )
  if position.updates == 0 and gaps is not None:
    ppo_checks.first_update(update_metrics[0], gaps, run.config)
  updates_before = position.updates
  position = Position(
    state=updated.state,
    updates=updates_before + len(update_metrics),
    scored=scored._replace(metrics=rollout_metrics),
    seconds=position.seconds,
  )
  seconds = time.monotonic() - started
  last = log(  # step 5
    run, updates_before, rollout_metrics, update_metrics, outputs, seconds
  )
  position = dataclasses.replace(position, last=last)
  if position.updates % run.updates_per_iteration == 0:
    position = _finish_iteration(run, position, iteration, outputs.progress)
    # A finished iteration resumes after its prompts, an unfinished one draws
    # them again.
    prompts = prompts._replace(iterator_state=run.data.prompts.get_state())
  seconds = position.seconds + time.monotonic() - started
  position = dataclasses.replace(position, seconds=seconds)
  if updated.stopped or _is_save_due(run, position.updates, iteration):
    save(  # step 6
      run, position, rollout_metrics, prompts.iterator_state, outputs.saver
    )
  if updated.stopped:
    outputs.saver.wait()
    raise preemption.Preempted
  return position


class _Prompts(NamedTuple):
  """The prompts of an iteration, and the iterator state from before them."""

  batch: PromptBatch
  iterator_state: Any


def _next_prompts(run: PpoRun, iteration: int) -> _Prompts:
  iterator_state = run.data.prompts.get_state()
  batch = next(run.data.prompts)
  size = run.config.ppo.rollout_batch
  shard = transfer.get_process_shard(size, run.mesh)["shard_index"]
  batch = number_episodes(batch, iteration, size, shard)
  return _Prompts(batch, iterator_state)


def number_episodes(
  batch: PromptBatch, iteration: int, size: int, shard: int
) -> PromptBatch:
  """Numbers the rows of a batch through the whole run.

  A row's random key follows from its number, so a prompt that comes again gets
  a new response.

  Args:
    batch: this process's prompts.
    iteration: number of the iteration, from 0.
    size: number of prompts of all processes.
    shard: index of this process's shard.
  """
  count = len(batch.ids)
  first_id = iteration * size + shard * count
  ids = np.arange(first_id, first_id + count, dtype=np.int32)
  return dataclasses.replace(batch, ids=ids)


def rollout_phase(
  run: PpoRun, position: Position, prompts: PromptBatch, *, check: bool
) -> tuple[ScoredRollout, Gaps | None]:
  """Rolls out, scores and computes advantages: steps 1 to 3.

  Args:
    run: the run.
    position: how far it is.
    prompts: this process's prompts.
    check: whether to compare log-probabilities that must be equal.

  Returns:
    The experience, and the gaps that were measured.
  """
  policy, value = _merge_base_params(run, position.state)
  rollout = run.programs.generate(
    policy, transfer.put_local_batch(prompts, run.mesh), run.key
  )
  gaps = None
  if check:
    gaps = ppo_checks.agree(
      run.programs.compare,
      policy,
      run.frozen,
      rollout,
      run.config,
      fresh=position.updates == 0,
    )
  scored = run.programs.experience(
    rollout,
    run.frozen["reference"],
    run.frozen["reward"],
    value,
    position.state.kl_coef,
  )
  return ScoredRollout(*scored), gaps


def _merge_base_params(run: PpoRun, state: PpoState) -> tuple[PyTree, PyTree]:
  """Combines the trained parameters with frozen ones below LoRA adapters."""
  return (
    lora.merge_trees(run.base.policy, state.policy.params),
    lora.merge_trees(run.base.value, state.value.params),
  )


class _Updated(NamedTuple):
  """Result of an iteration's updates."""

  state: PpoState
  metrics: list[Metrics]  # of each update
  stopped: bool  # whether SIGTERM has come


def update_phase(
  run: PpoRun,
  position: Position,
  iteration: int,
  experience: Experience,
  prompts: _Prompts,
  outputs: _Outputs,
) -> _Updated:
  """Updates both networks on each minibatch that is left: step 4."""
  minibatches = minibatch_indices(run.config.seed, iteration, run.config.ppo)
  state, metrics, stopped = position.state, [], False
  data_position = {"prompts": prompts.iterator_state}
  for rows in minibatches[position.updates % run.updates_per_iteration :]:
    inputs, ptx = {"prompts": prompts.batch, "episodes": rows}, None
    if run.data.ptx is not None:
      data_position = data_position | {"ptx": run.data.ptx.get_state()}
      inputs["ptx"] = next(run.data.ptx)
      ptx = transfer.put_local_batch(inputs["ptx"], run.mesh)
    state, update_metrics = run.programs.update(
      state, experience, rows, ptx, run.base
    )
    metrics.append(update_metrics)
    step = position.updates + len(metrics)
    outputs.guard.watch(step, data_position, inputs, update_metrics)
    stopped = outputs.preempted.requested()
    if stopped:
      break
  outputs.guard.check()
  return _Updated(state, metrics, stopped)


def minibatch_indices(
  seed: int, iteration: int, section: configs.Ppo
) -> list[np.ndarray]:
  """Shuffles the episodes into minibatches, once per inner epoch.

  Returns:
    [minibatch] int32, the episodes of each update.
  """
  indices = []
  for epoch in range(section.inner_epochs):
    rng = np.random.RandomState([seed & 0xFFFFFFFF, iteration, epoch])
    shuffled = rng.permutation(section.rollout_batch).astype(np.int32)
    indices.extend(shuffled.reshape(-1, section.minibatch))
  return indices


def log(
  run: PpoRun,
  updates_before: int,
  rollout_metrics: Mapping[str, Any],
  update_metrics: Sequence[dict[str, Any]],
  outputs: _Outputs,
  seconds: float,
) -> dict[str, Any]:
  """Writes a row of metrics for each update: step 5.

  Args:
    run: the run.
    updates_before: number of updates before these.
    rollout_metrics: metrics of the rollout.
    update_metrics: metrics of each update.
    outputs: where to write.
    seconds: duration of the rollout and these updates.

  Returns:
    Metrics of the last update, without counts and learning rates.
  """
  iteration = updates_before // run.updates_per_iteration
  episodes = run.config.ppo.rollout_batch
  fraction = len(update_metrics) / run.updates_per_iteration
  tokens = float(rollout_metrics["response_tokens"])
  speed = {
    "episodes_per_second": fraction * episodes / seconds,
    "tokens_per_second": fraction * tokens / seconds,
  }
  row: dict[str, Any] = {}
  for step, metrics in enumerate(update_metrics, updates_before + 1):
    row = _without_counts(rollout_metrics) | metrics | speed
    policy_rate, value_rate = (rate(step - 1) for rate in run.schedules)
    outputs.writer.write(
      step,
      row
      | {
        "episodes": (iteration + 1) * episodes,
        "learning_rate": policy_rate,
        "value_learning_rate": value_rate,
      },
    )
  return row


def _without_counts(rollout_metrics: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in rollout_metrics.items() if k != "response_tokens"}


def _finish_iteration(
  run: PpoRun, position: Position, iteration: int, progress: Progress
) -> Position:
  """Takes over the next β, shows progress and saves a snapshot if it is due."""
  assert position.scored is not None
  state = dataclasses.replace(
    position.state, kl_coef=position.scored.next_kl_coef
  )
  metrics = position.scored.metrics
  progress.update(1, reward=metrics["reward"], kl=metrics["kl"])
  every = run.config.ppo.snapshot_every
  if every and not (iteration + 1) % every:
    _save_snapshot(run, state, iteration + 1)
  return dataclasses.replace(position, state=state, scored=None)


def _is_save_due(run: PpoRun, updates: int, iteration: int) -> bool:
  """Whether a checkpoint is due since the iteration began."""
  every = run.config.run.save_every
  iteration_start = iteration * run.updates_per_iteration
  if updates == run.total_updates:
    return True
  return bool(every) and updates // every > iteration_start // every


def save(
  run: PpoRun,
  position: Position,
  rollout_metrics: Mapping[str, Any],
  prompts_state: Any,
  saver: checkpoints.Checkpointer,
) -> None:
  """Saves a checkpoint: step 6.

  Args:
    run: the run.
    position: how far it is.
    rollout_metrics: metrics of the last rollout.
    prompts_state: state of the prompts' iterator to resume from: before those
      of an unfinished iteration.
    saver: the run's checkpoints.
  """
  arrays = vars(position.state)
  if position.scored is not None:
    experience, next_kl_coef, _ = position.scored
    arrays = arrays | {"experience": (experience, next_kl_coef)}
  saver.save(
    position.updates,
    arrays,
    {
      "prompts": prompts_state,
      "ptx": None if run.data.ptx is None else run.data.ptx.get_state(),
      "rolled": files.to_json_values(rollout_metrics),
      fingerprint.KEY: run.data.fingerprint.as_dict(),
      "marks": run.checksums,
      "last": files.to_json_values(position.last),
      "seconds": position.seconds,
    },
    supervised.checkpoint_score(
      run.config.run, _without_counts(rollout_metrics)
    ),
  )


def _abstract_experience(run: PpoRun, state: PpoState) -> Any:
  """Returns shapes and shardings of an experience and of the next β."""
  # A batch is drawn for its shapes only.
  iterator_state = run.data.prompts.get_state()
  prompts = transfer.put_local_batch(next(run.data.prompts), run.mesh)
  run.data.prompts.set_state(iterator_state)
  policy, value = _merge_base_params(run, state)
  rollout = jax.eval_shape(run.programs.generate, policy, prompts, run.key)
  experience, kl_coef, _ = jax.eval_shape(
    run.programs.experience,
    rollout,
    run.frozen["reference"],
    run.frozen["reward"],
    value,
    state.kl_coef,
  )

  def with_sharding(tree: Any, spec: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec), tree
    )

  return (
    with_sharding(experience, sharding.batch_sharding(run.mesh)),
    with_sharding(kl_coef, sharding.replicated(run.mesh)),
  )


def _save_snapshot(run: PpoRun, state: PpoState, iterations: int) -> None:
  """Saves the policy, not averaged, as a stage of its own."""
  directory = pathlib.Path(run.directory) / SNAPSHOTS / f"{iterations:06d}"
  if files.read_complete(directory) is not None:
    return
  tokenizer_store.put_tokenizer(directory, run.start.stage.tokenizer)
  save_policy(run, directory, state.policy.params, state)
  files.mark_complete(directory, {"iteration": iterations})


def save_policy(
  run: PpoRun, directory: str | pathlib.Path, params: PyTree, state: PpoState
) -> None:
  """Writes a policy as a stage that others can start from."""
  stage_model.save_stage_model(
    directory,
    params,
    kind=stage_model.LANGUAGE,
    model=run.networks.policy.config,
    data=run.config.data,
    adapts=run.start.adapts,
    starts_from=run.start.stage,
    stage=run.name,
    step=int(state.policy.step),
  )
