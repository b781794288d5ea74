"""PPO and PPO-ptx: the training loop (paper, section 3.5 and C.4).

Each iteration of `_iterate`:

  1. Roll out. Sample a response to each of `rollout_batch` prompts, and record
     log π(a_t) of each token: `models.sampling.generate`.
  2. Score. One pass each of reference, reward models and value network gives
       r_t = −β (log π(a_t) − log π_ref(a_t)), plus the score at the last token
     less a penalty for a missing end-of-text:
     `steps.ppo_scoring.score_rollout`, `losses.returns.token_rewards`.
  3. Advantages. The same jitted function then computes
       A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} − V_t:
     `losses.returns.gae`, then `losses.masked.whiten`.
  4. Minibatch updates, in `inner_epochs` passes over the episodes:
     `steps.ppo.update`. The policy minimises the clipped surrogate loss
       −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t):  `losses.ppo.policy_loss`,
     plus γ_ptx times the language-model loss on pretraining documents:
     `steps.language.gradients`. The value network minimises the clipped squared
     error: `losses.ppo.value_loss`.
  5. Log and watch. One row of metrics.jsonl for each update, warnings of a
     collapse (`ppo_collapse`), held-out evaluation and samples
     (`ppo_held_out`), if they are due.
  6. Save, if it is due. The same command resumes bit for bit from a checkpoint.

`train` calls `ppo_setup.set_up`, which makes a `PpoRun`: what stays the same.
It also makes the first `PpoState`, which updates change.
`ppo_run_state.restore` returns the `RunState` in which an earlier call stopped.
`_iterate` maps one RunState to the next: `rollout_phase` (steps 1 to 3),
`update_phase` (4), `log` and `observe` (5) and `ppo_run_state.save` (6).
`training.ppo_programs` jits the functions of an iteration.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.distributed import preemption, transfer
from instructgpt_jax.runs import files
from instructgpt_jax.runs.metrics import MetricWriter
from instructgpt_jax.runs.progress import Progress, log_line
from instructgpt_jax.steps.ppo_gaps import Gaps
from instructgpt_jax.steps.state import Metrics, PpoState
from instructgpt_jax.training import (
  ppo_checks,
  ppo_collapse,
  ppo_held_out,
  ppo_run_state,
  ppo_setup,
  stage_model,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.training.ppo_run_state import RunState, ScoredRollout
from instructgpt_jax.training.ppo_setup import PpoRun
from instructgpt_jax.training.task_validation import MeasureTasks
from instructgpt_jax.types import Experience, PromptBatch


def train(
  config: configs.PpoExperiment,
  directory: str,
  *,
  name: str = "ppo",
  measure_tasks: MeasureTasks | None = None,
) -> None:
  """Trains a policy against a reward model.

  Args:
    config: the experiment; `ppo.ptx_coef` 0 is PPO without pretraining data.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".
    measure_tasks: measures the tasks of `ppo.tasks`, see `task_validation`.
  """
  if stage_model.is_complete(directory):
    return
  run, first_state = ppo_setup.set_up(config, directory, name)
  loops = ppo_held_out.make_loops(run, measure_tasks)
  tokenizer_store.put_tokenizer(directory, run.start.stage.tokenizer)
  result = _run_iterations(run, first_state, loops)
  ppo_checks.require_unchanged(
    run.checksums, ppo_setup.compute_checksums(run.frozen), directory
  )
  if result.evaluated.chosen(config.run) is None:
    ppo_run_state.save_result(run, result.trained)
  files.mark_complete(directory, _summary(run, result))


def _summary(run: PpoRun, result: RunState) -> dict[str, Any]:
  """Returns the summary of a finished run."""
  section = run.config.ppo
  iterations = result.updates // section.updates_per_iteration
  final_metrics = ("reward", "kl", "ended", "response_length")
  summary = {
    "updates": result.updates,
    "episodes": iterations * section.rollout_batch,
    "seconds": result.seconds,
    **{key: result.last_metrics[key] for key in final_metrics},
    **result.evaluated.metrics,
  }
  best = result.evaluated.chosen(run.config.run)
  if best is not None:
    summary |= {"selected_step": best["step"], "selected_by": best["metric"]}
  if iterations < section.num_iterations:
    summary["stopped_by"] = "ppo.stop_kl"
  return summary


class _LoopTools(NamedTuple):
  """What the loop writes to, and what stops it."""

  saver: checkpoints.Checkpointer
  writer: MetricWriter
  observer: ppo_held_out.Observer
  collapse: ppo_collapse.CollapseWatch
  progress: Progress
  sigterm: preemption.PreemptionWatch
  guard: supervised.NonFiniteGuard


def _run_iterations(
  run: PpoRun, first_state: PpoState, loops: ppo_held_out.Loops
) -> RunState:
  """Runs the iterations that an earlier call has not done.

  After SIGTERM, finishes the current update, saves a checkpoint and raises
  Preempted. If the iteration is unfinished, the checkpoint includes its
  experience, and a later call resumes with the next minibatch.
  """
  settings, section = run.config.run, run.config.ppo
  with checkpoints.Checkpointer(
    run.directory, supervised.retention_policy(settings)
  ) as saver:
    run_state = ppo_run_state.restore(run, first_state, saver)
    first = run_state.updates // section.updates_per_iteration
    with (
      MetricWriter(
        run.directory,
        settings,
        name=run.name,
        resume_step=run_state.updates,
      ) as writer,
      ppo_held_out.Observer(
        run,
        loops,
        writer,
        lambda trained: ppo_run_state.save_result(run, trained),
        resume_step=run_state.updates,
      ) as observer,
      Progress(
        section.num_iterations,
        run.name,
        initial=first,
        unit="iteration",
        compiles=True,
      ) as progress,
      preemption.PreemptionWatch() as sigterm,
    ):
      guard = supervised.NonFiniteGuard(run.directory)
      collapse = ppo_collapse.CollapseWatch(run.name, section, run.directory)
      tools = _LoopTools(
        saver, writer, observer, collapse, progress, sigterm, guard
      )
      if run_state.updates == 0:
        run_state = observe(run, run_state, 0, tools)
      for iteration in range(first, section.num_iterations):
        if _exceeds_stop_kl(run, run_state):
          log_line(
            f"{run.name}: the KL divergence of iteration {iteration} is"
            f" {run_state.last_metrics['kl']:.3g} nats per episode, above"
            f" --ppo.stop_kl={section.stop_kl}; the run ends here"
          )
          break
        # Only the first rollout of this process is checked.
        check = iteration == first and run_state.scored is None
        run_state = _iterate(run, run_state, iteration, tools, check=check)
  return run_state


def _iterate(
  run: PpoRun,
  run_state: RunState,
  iteration: int,
  tools: _LoopTools,
  *,
  check: bool,
) -> RunState:
  """Runs one iteration, or the rest of one.

  Args:
    run: the run.
    run_state: its state before.
    iteration: number of the iteration, from 0.
    tools: what it writes to, and what stops it.
    check: whether to check the rollout's log-probabilities.

  Returns:
    The state after it.

  Raises:
    Preempted: SIGTERM has come, and the state is saved.
  """
  started = time.monotonic()
  prompts = _next_prompts(run, iteration)
  scored, gaps = run_state.scored, None
  if scored is None:  # steps 1 to 3
    scored, gaps = rollout_phase(run, run_state, prompts.batch, check=check)
  updated = update_phase(  # step 4
    run, run_state, iteration, scored.experience, prompts, tools
  )
  rollout_metrics, update_metrics = jax.device_get(
    (scored.metrics, updated.metrics)
  )
  ppo_collapse.add_distinct_share(rollout_metrics, scored.experience.rollout)
  if run_state.updates == 0 and gaps is not None:
    ppo_checks.check_first_update(update_metrics[0], gaps, run.config)
  last_metrics = log(  # step 5
    run,
    run_state.updates,
    rollout_metrics,
    update_metrics,
    tools.writer,
    time.monotonic() - started,
  )
  seconds_before = run_state.seconds
  run_state = dataclasses.replace(
    run_state,
    trained=updated.trained,
    updates=run_state.updates + len(update_metrics),
    scored=scored._replace(metrics=rollout_metrics),
    last_metrics=last_metrics,
  )
  if run_state.updates % run.config.ppo.updates_per_iteration == 0:
    run_state = _finish_iteration(run, run_state, iteration, tools)
    # A finished iteration resumes after its prompts, an unfinished one draws
    # them again.
    prompts = prompts._replace(iterator_state=run.data.prompts.get_state())
  seconds = seconds_before + time.monotonic() - started
  run_state = dataclasses.replace(run_state, seconds=seconds)
  if updated.stopped or _is_save_due(run, run_state, iteration):
    ppo_run_state.save(  # step 6
      run, run_state, rollout_metrics, prompts.iterator_state, tools.saver
    )
  if updated.stopped:
    tools.saver.wait()
    raise preemption.Preempted
  return run_state


class _Prompts(NamedTuple):
  """The prompts of an iteration, and the iterator state from before them."""

  batch: PromptBatch
  iterator_state: Any


def _next_prompts(run: PpoRun, iteration: int) -> _Prompts:
  """Draws the prompts of an iteration; this process gets its shard of them."""
  iterator_state = run.data.prompts.get_state()
  batch = next(run.data.prompts)
  size = run.config.ppo.rollout_batch
  shard = transfer.get_process_shard(size, run.mesh)["shard_index"]
  batch = number_episodes(batch, iteration, size, shard)
  return _Prompts(batch, iterator_state)


def number_episodes(
  batch: PromptBatch, iteration: int, size: int, shard: int
) -> PromptBatch:
  """Numbers the episodes of a batch consecutively through the whole run.

  An episode's random key follows from its number, so a prompt that is repeated
  gets a new response.

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
  run: PpoRun, run_state: RunState, prompts: PromptBatch, *, check: bool
) -> tuple[ScoredRollout, Gaps | None]:
  """Rolls out, scores and computes advantages: steps 1 to 3.

  Args:
    run: the run.
    run_state: its state.
    prompts: this process's prompts.
    check: whether to compare log-probabilities that must be equal.

  Returns:
    The scored rollout, and the gaps that the check measured.
  """
  policy, value = ppo_run_state.merge_base_params(run, run_state.trained)
  rollout = run.programs.generate(
    policy, transfer.put_local_batch(prompts, run.mesh), run.key
  )
  gaps = None
  if check:
    gaps = ppo_checks.check_first_rollout(
      run.programs.measure_gaps,
      policy,
      run.frozen,
      rollout,
      run.config,
      is_new_run=run_state.updates == 0,
    )
  scored = run.programs.score_rollout(
    rollout,
    run.frozen["reference"],
    run.frozen["reward"],
    value,
    run_state.trained.kl_coef,
  )
  return ScoredRollout(*scored), gaps


class _Updated(NamedTuple):
  """Result of an iteration's updates."""

  trained: PpoState
  metrics: list[Metrics]  # of each update
  stopped: bool  # whether SIGTERM has come


def update_phase(
  run: PpoRun,
  run_state: RunState,
  iteration: int,
  experience: Experience,
  prompts: _Prompts,
  tools: _LoopTools,
) -> _Updated:
  """Updates both networks on each minibatch that is left: step 4.

  Args:
    run: the run.
    run_state: its state before.
    iteration: number of the iteration, from 0.
    experience: the iteration's experience.
    prompts: the iteration's prompts, for a report on a loss that is not finite.
    tools: what stops the updates: SIGTERM, or a loss that is not finite.
  """
  section = run.config.ppo
  minibatches = minibatch_indices(run.config.seed, iteration, section)
  trained, metrics, stopped = run_state.trained, [], False
  data_position = {"prompts": prompts.iterator_state}
  for episode_indices in minibatches[
    run_state.updates % section.updates_per_iteration :
  ]:
    inputs, ptx = {"prompts": prompts.batch, "episodes": episode_indices}, None
    if run.data.ptx is not None:
      data_position = data_position | {"ptx": run.data.ptx.get_state()}
      inputs["ptx"] = next(run.data.ptx)
      ptx = transfer.put_local_batch(inputs["ptx"], run.mesh)
    trained, update_metrics = run.programs.update(
      trained, experience, episode_indices, ptx, run.base
    )
    metrics.append(update_metrics)
    step = run_state.updates + len(metrics)
    tools.guard.watch(step, data_position, inputs, update_metrics)
    stopped = tools.sigterm.requested()
    if stopped:
      break
  tools.guard.check()
  return _Updated(trained, metrics, stopped)


def minibatch_indices(
  seed: int, iteration: int, section: configs.Ppo
) -> list[np.ndarray]:
  """Shuffles the episodes into minibatches, once per inner epoch.

  Returns:
    For each update, [minibatch] int32: indices of its episodes.
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
  writer: MetricWriter,
  seconds: float,
) -> dict[str, Any]:
  """Writes a row of metrics for each update: step 5.

  Args:
    run: the run.
    updates_before: number of updates before these.
    rollout_metrics: metrics of the rollout.
    update_metrics: metrics of each update.
    writer: writer of metrics.jsonl.
    seconds: duration of the rollout and these updates.

  Returns:
    Metrics of the last update, without counts and learning rates.
  """
  section = run.config.ppo
  iteration = updates_before // section.updates_per_iteration
  # An iteration that was resumed has only a part of its updates here.
  fraction = len(update_metrics) / section.updates_per_iteration
  tokens = float(rollout_metrics["response_tokens"])
  speed = {
    "episodes_per_second": fraction * section.rollout_batch / seconds,
    "tokens_per_second": fraction * tokens / seconds,
  }
  row: dict[str, Any] = {}
  for step, metrics in enumerate(update_metrics, updates_before + 1):
    row = _without_counts(rollout_metrics) | metrics | speed
    policy_rate, value_rate = (rate(step - 1) for rate in run.schedules)
    writer.write(
      step,
      row
      | {
        "episodes": (iteration + 1) * section.rollout_batch,
        "learning_rate": policy_rate,
        "value_learning_rate": value_rate,
      },
    )
  return row


def _without_counts(rollout_metrics: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in rollout_metrics.items() if k != "response_tokens"}


def _finish_iteration(
  run: PpoRun, run_state: RunState, iteration: int, tools: _LoopTools
) -> RunState:
  """Sets the next β, shows progress, saves a snapshot if due, and observes."""
  assert run_state.scored is not None
  trained = dataclasses.replace(
    run_state.trained, kl_coef=run_state.scored.next_kl_coef
  )
  metrics = run_state.scored.metrics
  tools.progress.update(1, reward=metrics["reward"], kl=metrics["kl"])
  every = run.config.ppo.snapshot_every
  if every and not (iteration + 1) % every:
    ppo_run_state.save_snapshot(run, trained, iteration + 1)
  tools.collapse.observe(iteration + 1, run_state.last_metrics)
  run_state = dataclasses.replace(run_state, trained=trained, scored=None)
  return observe(run, run_state, iteration + 1, tools)


def observe(
  run: PpoRun, run_state: RunState, iterations: int, tools: _LoopTools
) -> RunState:
  """Evaluates on held-out prompts and writes samples, where due: step 5.

  Args:
    run: the run.
    run_state: its state after some iterations.
    iterations: number of iterations done.
    tools: what observes.
  """
  evaluated = tools.observer.observe(
    run_state.trained,
    run_state.evaluated,
    iterations,
    last=_is_last(run, run_state),
  )
  return dataclasses.replace(run_state, evaluated=evaluated)


def _exceeds_stop_kl(run: PpoRun, run_state: RunState) -> bool:
  """Returns whether the last whole iteration had too large a KL divergence."""
  limit, kl = run.config.ppo.stop_kl, run_state.last_metrics.get("kl")
  if limit is None or kl is None or run_state.scored is not None:
    return False
  return float(kl) > limit


def _is_last(run: PpoRun, run_state: RunState) -> bool:
  """Returns whether the run ends with this state."""
  done = run_state.updates == run.config.ppo.num_updates
  return done or _exceeds_stop_kl(run, run_state)


def _is_save_due(run: PpoRun, run_state: RunState, iteration: int) -> bool:
  """Returns whether a checkpoint is due after an iteration's updates.

  It is due if a multiple of `run.save_every` is among the iteration's updates,
  also those before a resumption. So a resumed run saves where another one does.
  It is due as well where the run ends, and where `run.keep_best` is evaluated.
  """
  section, updates = run.config.ppo, run_state.updates
  if _is_last(run, run_state):
    return True
  if run.config.run.keep_best in run_state.evaluated.metrics_at(updates):
    return True
  every = run.config.run.save_every
  updates_before = iteration * section.updates_per_iteration
  return bool(every) and updates // every > updates_before // every
