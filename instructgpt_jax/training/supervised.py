"""One loop for all that trains on given batches: batch, step, log, save.

A run that is killed and started again restores its newest checkpoint, cuts the
metrics that came after it, and goes on with the very batch that followed: what
it then does is bit for bit what the run without the kill does.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import preemption, transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.runs.metrics import MetricWriter
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training import fingerprint as fingerprint_lib
from instructgpt_jax.training import networks
from instructgpt_jax.types import PyTree

BAD_BATCH = "bad_batch.json"
# Measures that can choose a checkpoint, with the sign that makes higher better.
HIGHER_IS_BETTER = {"valid_loss": -1.0, "valid_rm_score": 1.0, "reward": 1.0}


@dataclasses.dataclass(frozen=True)
class EvaluationLoop:
  """What is measured beside the training.

  Attributes:
    measure: (parameters, step) → {metric: value}.
    every: steps between two measurements; the last step is always one.
    select: name of the metric whose best value chooses the parameters that are
      kept, with the sign that makes higher better; None keeps the last ones.
    keep: (parameters, step) → None, stores the best so far.
  """

  measure: Callable[[PyTree, int], Mapping[str, float]]
  every: int
  select: tuple[str, float] | None = None
  keep: Callable[[PyTree, int], None] = lambda params, step: None


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """A trained state, and what to say about the training."""

  state: Any
  summary: dict[str, Any]


def step_program(
  train_step: Callable[..., Any],
  network: networks.Network,
  optimizer: optax.GradientTransformation,
  state: state_lib.TrainState,
  mesh: mesh_lib.AnyMesh,
  *,
  seed: int,
  microbatch: int,
) -> Any:
  """(state, batch, frozen parameters) → (state, metrics), jitted.

  Args:
    train_step: of `steps.language` or `steps.reward`.
    network: what is trained.
    optimizer: of the state.
    state: the state before, or its shapes.
    mesh: where it lies.
    seed: of dropout.
    microbatch: rows, or prompts, at a time; 0 is all.
  """
  step = functools.partial(
    train_step,
    model=network,
    optimizer=optimizer,
    seed=seed,
    microbatch=microbatch,
  )
  return jax.jit(
    mesh_lib.with_mesh(mesh, step),
    donate_argnums=0,
    out_shardings=(networks.shardings(network, state, mesh), None),
  )


def fit(
  state: Any,
  step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
  batches: grain.DatasetIterator,
  *,
  workdir: str,
  name: str,
  run: configs.Run,
  total_steps: int,
  mesh: Mesh,
  learning_rate: Callable[[int], Any],
  fingerprint: fingerprint_lib.Fingerprint,
  evaluation: EvaluationLoop | None = None,
  log: Callable[[int], Mapping[str, float]] = lambda step: {},
) -> TrainResult:
  """Trains for `total_steps` updates, from where an earlier call stopped.

  Saves and ends at the next step once SIGTERM has come.

  Args:
    state: has `params`; donated to `step_fn`.
    step_fn: jitted (state, batch) → (state, metrics with "loss"); metrics may
      hold "tokens", from which the speed follows.
    batches: endless or long enough, with get_state and set_state.
    workdir: directory of the run.
    name: shown beside the progress.
    run: logging and saving.
    total_steps: updates.
    mesh: where batches are put.
    learning_rate: number of updates done → rate of the next one.
    fingerprint: of the data and of what a step holds.
    evaluation: see there.
    log: step → more metrics of that step.

  Raises:
    UserError: the checkpoint belongs to other data or batches; or the loss or
      the gradient is not finite, and `bad_batch.json` has the batch's address.
    Preempted: SIGTERM has come, and the state is saved.
  """
  with checkpoints.Checkpointer(workdir, retention_policy(run)) as saver:
    restored = saver.restore_latest(
      state, lambda extra: fingerprint.require_same(extra, workdir)
    )
    start, best, seconds = 0, None, 0.0
    last: Mapping[str, float] = {}
    if restored is not None:
      start, state, extra = restored
      batches.set_state(extra["data"])
      best, seconds, last = extra["best"], extra["seconds"], extra["last"]
    with (
      MetricWriter(
        workdir, tensorboard=run.tensorboard, resume_step=start
      ) as writer,
      Progress(total_steps, name, initial=start, compiles=True) as progress,
      preemption.PreemptionWatch() as watch,
    ):
      guard = NonFiniteGuard(workdir)
      meter = Throughput()
      began = time.monotonic()
      for step in range(start + 1, total_steps + 1):
        position = batches.get_state()
        batch = next(batches)
        state, metrics = step_fn(state, transfer.put_local_batch(batch, mesh))
        guard.watch(step, position, batch, metrics)
        meter.add(metrics)
        logged = step % run.log_every == 0 or step == total_steps
        if logged:
          guard.check()
          row = jax.device_get(dict(metrics))
          row = {k: v for k, v in row.items() if k != "tokens"}
          writer.write(
            step,
            row
            | {"learning_rate": learning_rate(step - 1)}
            | dict(log(step))
            | meter.rates(),
          )
          progress.update(step - progress.done, loss=row["loss"])
        else:
          progress.update(1)
        new_score = None
        if evaluation and (step % evaluation.every == 0 or step == total_steps):
          guard.check()
          last = dict(evaluation.measure(state.params, step))
          writer.write(step, last)
          best = _selected(evaluation, best, last, state.params, step)
          new_score = checkpoint_score(run, last)
          meter.restart()
        stop = watch.requested()
        if (
          stop
          or step == total_steps
          or new_score is not None
          or (run.save_every and step % run.save_every == 0)
        ):
          guard.check()
          saver.save(
            step,
            state,
            {
              "data": batches.get_state(),
              fingerprint_lib.KEY: fingerprint.as_dict(),
              "best": best,
              "last": last,
              "seconds": seconds + time.monotonic() - began,
            },
            new_score,
          )
        if stop:
          saver.wait()
          raise preemption.Preempted
      seconds += time.monotonic() - began
  summary = {
    "steps": total_steps,
    "seconds": seconds,
    **last,
    **log(total_steps),
  }
  if best is not None:
    summary |= {"selected_step": best["step"], "selected_by": best["metric"]}
  return TrainResult(state, summary)


def retention_policy(run: configs.Run) -> checkpoints.RetentionPolicy:
  """Which checkpoints a run keeps."""
  return checkpoints.RetentionPolicy(
    run.keep, run.keep_every, best=bool(run.keep_best)
  )


def require_measure(run: configs.Run, measures: Sequence[str]) -> None:
  """Refuses a `run.keep_best` that the stage does not measure.

  Args:
    run: the settings.
    measures: the names that the stage measures.
  """
  if not run.keep_best or run.keep_best in measures:
    return
  raise UserError(
    f"is {run.keep_best!r}, which is not measured here",
    field="run.keep_best",
    fix=f"give {' or '.join(measures)}, or leave it out"
    if measures
    else "leave it out",
    code="no_such_measure",
  )


def checkpoint_score(
  run: configs.Run, values: Mapping[str, Any]
) -> float | None:
  """By which the best checkpoint is kept; None without that measure."""
  if run.keep_best not in values:
    return None
  return HIGHER_IS_BETTER[run.keep_best] * float(values[run.keep_best])


def _selected(
  evaluation: EvaluationLoop,
  best: dict[str, Any] | None,
  measured: Mapping[str, float],
  params: PyTree,
  step: int,
) -> dict[str, Any] | None:
  if evaluation.select is None:
    return None
  metric, sign = evaluation.select
  score = sign * measured[metric]
  if best is not None and not score > best["score"]:
    return best
  evaluation.keep(params, step)
  return {"score": score, "step": step, "metric": metric}


class NonFiniteGuard:
  """Stops a run whose loss is not finite, and says on which batch.

  The check of a step waits until the next one is under way, so the device is
  never idle for it; nothing is saved or measured before its own check.
  """

  def __init__(self, workdir: str | pathlib.Path):
    self._path = pathlib.Path(workdir) / BAD_BATCH
    self._watched: tuple[int, Any, Any, Any] | None = None

  def watch(
    self, step: int, position: Any, batch: Any, metrics: Mapping[str, Any]
  ) -> None:
    """Remembers a step, and checks the one before."""
    self.check()
    self._watched = (step, position, batch, metrics)

  def check(self) -> None:
    """Raises a UserError when the remembered step went wrong."""
    if self._watched is None:
      return
    step, position, batch, metrics = self._watched
    self._watched = None
    named = [n for n in metrics if "loss" in n or n.startswith("grad_norm")]
    values = jax.device_get({n: metrics[n] for n in named})
    bad = {n: v for n, v in values.items() if not np.isfinite(v).all()}
    if not bad:
      return
    files.write_json_atomic(
      self._path,
      {
        "step": step,
        "data_position": position,
        "metrics": values,
        "batch": _listed(batch),
      },
      indent=None,
    )
    name, value = min(bad.items(), key=lambda item: "loss" not in item[0])
    raise UserError(
      f"{name} is {float(value)} at step {step}; the batch is saved here",
      file=str(self._path),
      fix="lower the learning rate or look at that batch; the same command"
      " goes on from the last checkpoint",
    )


def _listed(batch: Any) -> dict[str, Any]:
  flat, _ = jax.tree_util.tree_flatten_with_path(batch)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
    for path, x in flat
  }


class Throughput:
  """Tokens and steps a second since the last look."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    """Begins to count anew."""
    self._tokens: list[Any] = []
    self._steps = 0
    self._since = time.monotonic()

  def add(self, metrics: Mapping[str, Any]) -> None:
    """Counts a step."""
    self._steps += 1
    if "tokens" in metrics:
      self._tokens.append(metrics["tokens"])

  def rates(self) -> dict[str, float]:
    """{"steps_per_second", "tokens_per_second"}; begins to count anew."""
    tokens = float(np.sum(jax.device_get(self._tokens)))
    seconds = max(time.monotonic() - self._since, 1e-9)
    rates = {"steps_per_second": self._steps / seconds}
    if self._tokens:
      rates["tokens_per_second"] = tokens / seconds
    self.restart()
    return rates
