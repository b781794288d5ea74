"""The training loop of pretraining, SFT and the reward model.

Each step of `fit`:

  1. Take the next batch, and put it on the mesh.
  2. Update: `steps.language.train_step` or `steps.reward.train_step`.
  3. Log, every `run.log_every` steps.
  4. Evaluate, every `evaluation.every` steps, and keep the best parameters.
  5. Save a checkpoint, every `run.save_every` steps and after an evaluation.

A run that is killed and started again restores its newest checkpoint, removes
the metrics that came after it, and continues with the next batch. Its results
are bit for bit those of a run that was not killed.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training import fingerprint as fingerprint_lib
from instructgpt_jax.training import networks, stage_model
from instructgpt_jax.types import PyTree

BAD_BATCH = "bad_batch.json"
# Measures that can choose a checkpoint, with the sign that makes higher better.
HIGHER_IS_BETTER = {"valid_loss": -1.0, "valid_rm_score": 1.0, "reward": 1.0}


@dataclasses.dataclass(frozen=True)
class EvaluationLoop:
  """Evaluations during a training.

  Attributes:
    measure: (parameters, step) → {metric: value}.
    every: steps between two evaluations; the last step has one as well.
    select: metric whose best value selects the parameters to keep, and the sign
      that makes higher better; None keeps the last parameters.
    keep: (parameters, step) → None, stores the best parameters so far.
  """

  measure: Callable[[PyTree, int], Mapping[str, float]]
  every: int
  select: tuple[str, float] | None = None
  keep: Callable[[PyTree, int], None] = lambda params, step: None


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """A trained state, and the summary of its training."""

  state: Any
  summary: dict[str, Any]


class Start(NamedTuple):
  """What a training starts from."""

  stage: stage_model.Stage | None
  params: networks.InitialParams
  state: state_lib.TrainState
  # jitted (state, batch) → (state, metrics with "loss", maybe "tokens")
  step: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]]

  @property
  def base_checksum(self) -> int | None:
    """Checksum of the base model, if adapters are trained."""
    adapts = self.params.adapts
    return None if adapts is None else adapts.checksum


def start_training(
  config: Any,
  network: networks.Network,
  train_step: Callable[..., Any],
  stage: stage_model.Stage | None,
  mesh: Mesh,
  *,
  total_steps: int,
  microbatch: int,
) -> Start:
  """Makes the state and the step of a training.

  Args:
    config: the experiment; its seed and optimizer are used.
    network: the network to train.
    train_step: the step of `steps.language` or `steps.reward`.
    stage: the stage to start from; None initializes all parameters.
    mesh: where arrays lie.
    total_steps: number of updates.
    microbatch: rows, or prompts, of a microbatch; 0 is all.
  """
  optimizer = optimizer_lib.make_optimizer(config.optimizer, total_steps)
  params = networks.init_params_from(
    network, stage, jax.random.key(config.seed), mesh
  )
  state = networks.train_state(network, params.trained, optimizer, mesh)
  program = step_program(
    train_step,
    network,
    optimizer,
    state,
    mesh,
    seed=config.seed,
    microbatch=microbatch,
  )
  # The trained parameters are donated with the state.
  params = params._replace(trained=None)
  return Start(
    stage,
    params,
    state,
    lambda state, batch: program(state, batch, params.frozen),
  )


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
  """Jits a step: (state, batch, frozen parameters) → (state, metrics).

  Args:
    train_step: the step of `steps.language` or `steps.reward`.
    network: the network to train.
    optimizer: optimizer of the state.
    state: the state, or its shapes.
    mesh: where it lies.
    seed: seed of dropout.
    microbatch: rows, or prompts, of a microbatch; 0 is all.
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


@dataclasses.dataclass(frozen=True)
class SupervisedRun:
  """What stays the same during a run.

  Attributes:
    directory: workdir of the run.
    name: shown beside the progress.
    settings: logging and saving.
    mesh: where batches are put.
    batches: at least `total_steps` batches, with get_state and set_state.
    total_steps: number of updates.
    learning_rate: number of updates done → rate of the next one.
    fingerprint: fingerprint of the data and the batches.
    evaluation: evaluations during the training, if any.
    log: step → further metrics of that step.
  """

  directory: str
  name: str
  settings: configs.Run
  mesh: Mesh
  batches: grain.DatasetIterator
  total_steps: int
  learning_rate: Callable[[int], Any]
  fingerprint: fingerprint_lib.Fingerprint
  evaluation: EvaluationLoop | None = None
  log: Callable[[int], Mapping[str, float]] = lambda step: {}


@dataclasses.dataclass(frozen=True)
class _Position:
  """How far a run is."""

  state: Any
  step: int = 0  # number of updates done
  best: dict[str, Any] | None = None  # score, step and metric of the best
  last: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0  # duration of earlier calls


class _Outputs(NamedTuple):
  """Where a run writes, and the signals that stop it."""

  saver: checkpoints.Checkpointer
  writer: MetricWriter
  progress: Progress
  preempted: preemption.PreemptionWatch
  guard: NonFiniteGuard
  throughput: Throughput
  start: float  # time at which the loop began


def fit(
  run: SupervisedRun,
  state: Any,
  step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
) -> TrainResult:
  """Trains for `total_steps` updates, from where an earlier call stopped.

  Saves and ends with the next step once SIGTERM has come.

  Args:
    run: the run.
    state: the state of a new run, with `params`; donated to `step_fn`.
    step_fn: jitted (state, batch) → (state, metrics). Metrics have "loss", and
      may have "tokens", the number of tokens, for the throughput.

  Raises:
    UserError: the checkpoint belongs to other data or batches; or the loss or
      the gradient is not finite, and `bad_batch.json` has the batch.
    Preempted: SIGTERM has come, and the state is saved.
  """
  with checkpoints.Checkpointer(
    run.directory, retention_policy(run.settings)
  ) as saver:
    position = _restore(run, state, saver)
    with (
      MetricWriter(
        run.directory,
        tensorboard=run.settings.tensorboard,
        resume_step=position.step,
      ) as writer,
      Progress(
        run.total_steps, run.name, initial=position.step, compiles=True
      ) as progress,
      preemption.PreemptionWatch() as watch,
    ):
      guard, throughput = NonFiniteGuard(run.directory), Throughput()
      outputs = _Outputs(
        saver, writer, progress, watch, guard, throughput, time.monotonic()
      )
      del state  # donated to the first step
      while position.step < run.total_steps:
        position = _step(run, position, step_fn, outputs)
      seconds = position.seconds + time.monotonic() - outputs.start
  summary = {
    "steps": run.total_steps,
    "seconds": seconds,
    **position.last,
    **run.log(run.total_steps),
  }
  if position.best is not None:
    summary |= {
      "selected_step": position.best["step"],
      "selected_by": position.best["metric"],
    }
  return TrainResult(position.state, summary)


def _restore(
  run: SupervisedRun, state: Any, saver: checkpoints.Checkpointer
) -> _Position:
  """Restores the newest checkpoint, if any, and the data's position."""
  restored = saver.restore_latest(
    state, lambda extra: run.fingerprint.require_same(extra, run.directory)
  )
  if restored is None:
    return _Position(state)
  step, state, extra = restored
  run.batches.set_state(extra["data"])
  return _Position(state, step, extra["best"], extra["last"], extra["seconds"])


def _step(
  run: SupervisedRun,
  position: _Position,
  step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
  outputs: _Outputs,
) -> _Position:
  """Runs one step: batch, update, log, evaluate, save."""
  step = position.step + 1
  data_position = run.batches.get_state()
  batch = next(run.batches)
  state, metrics = step_fn(
    position.state, transfer.put_local_batch(batch, run.mesh)
  )
  position = dataclasses.replace(position, state=state, step=step)
  outputs.guard.watch(step, data_position, batch, metrics)
  outputs.throughput.add(metrics)
  _log(run, step, metrics, outputs)
  score = None
  if _is_evaluation_due(run, step):
    position = _evaluate(run, position, outputs)
    score = checkpoint_score(run.settings, position.last)
  stop = outputs.preempted.requested()
  every = run.settings.save_every
  if (
    stop
    or step == run.total_steps
    or score is not None
    or (every and step % every == 0)
  ):
    outputs.guard.check()
    _save(run, position, score, outputs)
  if stop:
    outputs.saver.wait()
    raise preemption.Preempted
  return position


def _log(
  run: SupervisedRun, step: int, metrics: Mapping[str, Any], outputs: _Outputs
) -> None:
  """Shows progress, and writes a row of metrics if it is due."""
  if step % run.settings.log_every and step != run.total_steps:
    outputs.progress.update(1)
    return
  outputs.guard.check()
  row = jax.device_get(dict(metrics))
  row = {k: v for k, v in row.items() if k != "tokens"}
  outputs.writer.write(
    step,
    row
    | {"learning_rate": run.learning_rate(step - 1)}
    | dict(run.log(step))
    | outputs.throughput.rates(),
  )
  outputs.progress.update(step - outputs.progress.done, loss=row["loss"])


def _is_evaluation_due(run: SupervisedRun, step: int) -> bool:
  if run.evaluation is None:
    return False
  return step % run.evaluation.every == 0 or step == run.total_steps


def _evaluate(
  run: SupervisedRun, position: _Position, outputs: _Outputs
) -> _Position:
  """Measures the parameters, and keeps them if they are the best so far."""
  assert run.evaluation is not None
  outputs.guard.check()
  params, step = position.state.params, position.step
  measured = dict(run.evaluation.measure(params, step))
  outputs.writer.write(step, measured)
  best = _updated_best(run.evaluation, position.best, measured, params, step)
  outputs.throughput.restart()
  return dataclasses.replace(position, best=best, last=measured)


def _save(
  run: SupervisedRun,
  position: _Position,
  score: float | None,
  outputs: _Outputs,
) -> None:
  """Saves a checkpoint."""
  outputs.saver.save(
    position.step,
    position.state,
    {
      "data": run.batches.get_state(),
      fingerprint_lib.KEY: run.fingerprint.as_dict(),
      "best": position.best,
      "last": position.last,
      "seconds": position.seconds + time.monotonic() - outputs.start,
    },
    score,
  )


def retention_policy(run: configs.Run) -> checkpoints.RetentionPolicy:
  """Returns which checkpoints a run keeps."""
  return checkpoints.RetentionPolicy(
    run.keep, run.keep_every or 0, best=bool(run.keep_best)
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
  """Returns the score of a checkpoint, or None if it is not measured."""
  if run.keep_best not in values:
    return None
  return HIGHER_IS_BETTER[run.keep_best] * float(values[run.keep_best])


def _updated_best(
  evaluation: EvaluationLoop,
  best: dict[str, Any] | None,
  measured: Mapping[str, float],
  params: PyTree,
  step: int,
) -> dict[str, Any] | None:
  """Returns the best evaluation so far; keeps its parameters if it is new."""
  if evaluation.select is None:
    return None
  metric, sign = evaluation.select
  score = sign * measured[metric]
  if best is not None and not score > best["score"]:
    return best
  evaluation.keep(params, step)
  return {"score": score, "step": step, "metric": metric}


class NonFiniteGuard:
  """Stops a run whose loss is not finite, and saves the batch.

  A step is checked once the next one runs, so that the device never waits for
  the check. Nothing is saved or evaluated before its own check.
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
    """Raises a UserError if the remembered step is not finite."""
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
      " resumes from the last checkpoint",
    )


def _listed(batch: Any) -> dict[str, Any]:
  flat, _ = jax.tree_util.tree_flatten_with_path(batch)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
    for path, x in flat
  }


class Throughput:
  """Measures steps and tokens per second."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    """Restarts the count."""
    self._tokens: list[Any] = []
    self._steps = 0
    self._since = time.monotonic()

  def add(self, metrics: Mapping[str, Any]) -> None:
    """Counts a step."""
    self._steps += 1
    if "tokens" in metrics:
      self._tokens.append(metrics["tokens"])

  def rates(self) -> dict[str, float]:
    """Returns the rates since the last call, and restarts the count."""
    tokens = float(np.sum(jax.device_get(self._tokens)))
    seconds = max(time.monotonic() - self._since, 1e-9)
    rates = {"steps_per_second": self._steps / seconds}
    if self._tokens:
      rates["tokens_per_second"] = tokens / seconds
    self.restart()
    return rates
