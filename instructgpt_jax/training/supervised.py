"""The training loop of pretraining, SFT and the reward model.

Each step of `fit`:

  1. Take the next batch, and put it on the mesh.
  2. Update: `steps.language.train_step` or `steps.reward.train_step`.
  3. Log, every `run.log_every` steps.
  4. Evaluate, every `evaluation.every` steps, and keep the best parameters.
     Answer validation prompts, every `samples.every` steps.
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
from instructgpt_jax.training import networks, stage_model, task_validation
from instructgpt_jax.training.samples import SampleLoop, SampleWriter
from instructgpt_jax.types import PyTree

BAD_BATCH = "bad_batch.json"
# Sign that makes higher better, of each metric that can choose a checkpoint.
_METRIC_SIGNS = {
  "valid_loss": -1.0,
  "valid_rm_score": 1.0,
  "valid_judge_score": 1.0,
  "reward": 1.0,
}


@dataclasses.dataclass(frozen=True)
class EvaluationLoop:
  """Evaluations during a training.

  Attributes:
    measure: parameters → {metric: value}.
    every: steps between two evaluations; the last step has one as well.
    select: metric whose best value selects the parameters to save; None selects
      none.
    save_best: (parameters, step) → None, saves the best parameters so far.
  """

  measure: Callable[[PyTree], Mapping[str, float]]
  every: int
  select: str | None = None
  save_best: Callable[[PyTree, int], None] = lambda params, step: None


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """A trained state, and the summary of its training."""

  state: Any
  summary: dict[str, Any]


# Jitted (state, batch) → (state, metrics); donates the state. The metrics have
# "loss"; "tokens", the number of tokens, is for the throughput.
StepFunction = Callable[[Any, Any], tuple[Any, Mapping[str, Any]]]


class Start(NamedTuple):
  """The state before the first step, where it comes from, and the step."""

  stage: stage_model.Stage | None  # stage that the training starts from
  params: networks.InitialParams  # without the trained ones, which are donated
  state: state_lib.TrainState
  step: StepFunction

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
  """Makes the state before the first step, and jits the step.

  Args:
    config: the experiment; its seed and optimizer are used.
    network: the network to train.
    train_step: the step of `steps.language` or `steps.reward`.
    stage: the stage to start from; None initializes all parameters.
    mesh: mesh that arrays are sharded over.
    total_steps: number of updates.
    microbatch: rows, or prompts, of a microbatch; 0 is the whole batch.
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
  # `train_state` donates the trained parameters to the state.
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
    mesh: mesh that the step runs on.
    seed: seed of dropout.
    microbatch: rows, or prompts, of a microbatch; 0 is the whole batch.
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
    name: name of the stage, shown beside the progress.
    settings: settings of logging and saving.
    mesh: mesh that batches are put onto.
    batches: at least `total_steps` batches.
    total_steps: number of updates.
    learning_rate: number of updates done → rate of the next one.
    fingerprint: fingerprint of the data and the batches.
    evaluation: evaluations during the training, if any.
    samples: answers during the training, if any.
    tasks: tasks that are measured during the training, if any.
    step_metrics: step → further metrics of that step.
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
  samples: SampleLoop | None = None
  tasks: task_validation.TaskLoop | None = None
  step_metrics: Callable[[int], Mapping[str, float]] = lambda step: {}


@dataclasses.dataclass(frozen=True)
class _RunState:
  """What changes during a run; `SupervisedRun` is what stays the same.

  Attributes:
    trained: parameters and optimizer state.
    step: number of updates done.
    best: score, step and metric of the best evaluation so far.
    last_evaluation: metrics of the last evaluation.
    seconds: duration of earlier calls.
  """

  trained: Any
  step: int = 0
  best: dict[str, Any] | None = None
  last_evaluation: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0


class _LoopTools(NamedTuple):
  """What the loop writes to, and what stops it."""

  saver: checkpoints.Checkpointer
  writer: MetricWriter
  samples: SampleWriter
  progress: Progress
  sigterm: preemption.PreemptionWatch
  guard: NonFiniteGuard
  throughput: Throughput
  started: float  # time at which the loop began, by `time.monotonic`


def fit(run: SupervisedRun, state: Any, step_fn: StepFunction) -> TrainResult:
  """Trains for `total_steps` updates, from where an earlier call stopped.

  After SIGTERM it saves a checkpoint at the end of the step.

  Args:
    run: the run.
    state: the state before the first step, with `params`; donated to `step_fn`.
    step_fn: the jitted step.

  Raises:
    UserError: the checkpoint belongs to other data or batches; or the loss or
      the gradient is not finite, and `bad_batch.json` has the batch.
    Preempted: SIGTERM has come, and the state is saved.
  """
  with checkpoints.Checkpointer(
    run.directory, retention_policy(run.settings)
  ) as saver:
    run_state = _restore(run, state, saver)
    with (
      MetricWriter(
        run.directory,
        run.settings,
        name=run.name,
        resume_step=run_state.step,
      ) as writer,
      SampleWriter(
        run.directory, run.samples, writer, resume_step=run_state.step
      ) as samples,
      Progress(
        run.total_steps, run.name, initial=run_state.step, compiles=True
      ) as progress,
      preemption.PreemptionWatch() as sigterm,
    ):
      tools = _LoopTools(
        saver,
        writer,
        samples,
        progress,
        sigterm,
        NonFiniteGuard(run.directory),
        Throughput(),
        time.monotonic(),
      )
      del state  # donated to the first step
      if run_state.step == 0:
        samples.write_if_due(0, run_state.trained.params)
        _measure_tasks(run, run_state, tools)
      while run_state.step < run.total_steps:
        run_state = _step(run, run_state, step_fn, tools)
      seconds = run_state.seconds + time.monotonic() - tools.started
  summary = {
    "steps": run.total_steps,
    "seconds": seconds,
    **run_state.last_evaluation,
    **run.step_metrics(run.total_steps),
  }
  if run_state.best is not None:
    summary |= {
      "selected_step": run_state.best["step"],
      "selected_by": run_state.best["metric"],
    }
  return TrainResult(run_state.trained, summary)


def _restore(
  run: SupervisedRun, first_state: Any, saver: checkpoints.Checkpointer
) -> _RunState:
  """Restores the newest checkpoint, if any, and the data's position."""
  restored = saver.restore_latest(
    first_state,
    lambda extra: run.fingerprint.require_same(extra, run.directory),
  )
  if restored is None:
    return _RunState(first_state)
  step, trained, extra = restored
  run.batches.set_state(extra["data"])
  return _RunState(
    trained, step, extra["best"], extra["last"], extra["seconds"]
  )


def _step(
  run: SupervisedRun,
  run_state: _RunState,
  step_fn: StepFunction,
  tools: _LoopTools,
) -> _RunState:
  """Runs one step: batch, update, log, evaluate, save."""
  step = run_state.step + 1
  data_position = run.batches.get_state()
  batch = next(run.batches)
  trained, metrics = step_fn(
    run_state.trained, transfer.put_local_batch(batch, run.mesh)
  )
  run_state = dataclasses.replace(run_state, trained=trained, step=step)
  tools.guard.watch(step, data_position, batch, metrics)
  tools.throughput.add(metrics)
  _log(run, step, metrics, tools)
  _write_samples(run, run_state, tools)
  _measure_tasks(run, run_state, tools)
  score = None
  if _is_evaluation_due(run, step):
    run_state = _evaluate(run, run_state, tools)
    score = checkpoint_score(run.settings, run_state.last_evaluation)
  stopped = tools.sigterm.requested()
  every = run.settings.save_every
  if (
    stopped
    or step == run.total_steps
    or score is not None
    or (every and step % every == 0)
  ):
    tools.guard.check()
    _save(run, run_state, score, tools)
  if stopped:
    tools.saver.wait()
    raise preemption.Preempted
  return run_state


def _log(
  run: SupervisedRun, step: int, metrics: Mapping[str, Any], tools: _LoopTools
) -> None:
  """Shows progress, and writes a row of metrics if it is due."""
  if step % run.settings.log_every and step != run.total_steps:
    tools.progress.update(1)
    return
  tools.guard.check()
  row = jax.device_get(dict(metrics))
  row = {k: v for k, v in row.items() if k != "tokens"}
  tools.writer.write(
    step,
    row
    | {"learning_rate": run.learning_rate(step - 1)}
    | dict(run.step_metrics(step))
    | tools.throughput.rates(),
  )
  tools.progress.update(step - tools.progress.done, loss=row["loss"])


def _write_samples(
  run: SupervisedRun, run_state: _RunState, tools: _LoopTools
) -> None:
  """Answers validation prompts, if it is due."""
  step, last = run_state.step, run_state.step == run.total_steps
  if run.samples is None or not run.samples.is_due(step, last=last):
    return
  tools.guard.check()
  tools.samples.write_if_due(step, run_state.trained.params, last=last)
  tools.throughput.restart()  # without the time of the answers


def _measure_tasks(
  run: SupervisedRun, run_state: _RunState, tools: _LoopTools
) -> None:
  """Measures the run's tasks, if it is due."""
  step, last = run_state.step, run_state.step == run.total_steps
  if run.tasks is None or not run.tasks.is_due(step, last=last):
    return
  tools.guard.check()
  tools.writer.write(step, run.tasks.measure(run_state.trained.params))
  tools.throughput.restart()  # without the time of the tasks


def _is_evaluation_due(run: SupervisedRun, step: int) -> bool:
  if run.evaluation is None:
    return False
  return step % run.evaluation.every == 0 or step == run.total_steps


def _evaluate(
  run: SupervisedRun, run_state: _RunState, tools: _LoopTools
) -> _RunState:
  """Measures the parameters, and saves them if they are the best so far."""
  assert run.evaluation is not None
  tools.guard.check()
  metrics = dict(run.evaluation.measure(run_state.trained.params))
  tools.writer.write(run_state.step, metrics)
  best = _updated_best(run.evaluation, run_state, metrics)
  tools.throughput.restart()  # without the time of the evaluation
  return dataclasses.replace(run_state, best=best, last_evaluation=metrics)


def _updated_best(
  evaluation: EvaluationLoop,
  run_state: _RunState,
  metrics: Mapping[str, float],
) -> dict[str, Any] | None:
  """Returns the best evaluation so far; saves its parameters if it is new."""
  if evaluation.select is None:
    return None
  score = _METRIC_SIGNS[evaluation.select] * metrics[evaluation.select]
  best = run_state.best
  if best is not None and not score > best["score"]:
    return best
  evaluation.save_best(run_state.trained.params, run_state.step)
  return {"score": score, "step": run_state.step, "metric": evaluation.select}


def _save(
  run: SupervisedRun,
  run_state: _RunState,
  score: float | None,
  tools: _LoopTools,
) -> None:
  """Saves a checkpoint; `score` is None without a new evaluation."""
  tools.saver.save(
    run_state.step,
    run_state.trained,
    {
      "data": run.batches.get_state(),
      fingerprint_lib.KEY: run.fingerprint.as_dict(),
      "best": run_state.best,
      "last": run_state.last_evaluation,
      "seconds": run_state.seconds + time.monotonic() - tools.started,
    },
    score,
  )


def retention_policy(settings: configs.Run) -> checkpoints.RetentionPolicy:
  """Returns which checkpoints a run keeps."""
  return checkpoints.RetentionPolicy(
    settings.keep, settings.keep_every or 0, best=bool(settings.keep_best)
  )


def require_measured(settings: configs.Run, metrics: Sequence[str]) -> None:
  """Refuses a `run.keep_best` that the stage does not measure.

  Args:
    settings: settings of saving.
    metrics: the metrics of the stage that can choose a checkpoint.

  Raises:
    UserError: `no_such_measure`.
  """
  if not settings.keep_best or settings.keep_best in metrics:
    return
  raise UserError(
    f"is {settings.keep_best!r}, which is not measured here",
    field="run.keep_best",
    fix=f"give {' or '.join(metrics)}, or leave it out"
    if metrics
    else "leave it out",
    code="no_such_measure",
  )


def checkpoint_score(
  settings: configs.Run, metrics: Mapping[str, Any]
) -> float | None:
  """Returns `run.keep_best` among the metrics, with the sign: higher is better.

  It is None if the metrics do not have it.
  """
  if settings.keep_best not in metrics:
    return None
  return _METRIC_SIGNS[settings.keep_best] * float(metrics[settings.keep_best])


class NonFiniteGuard:
  """Stops a run whose loss or gradient is not finite, and saves the batch.

  `watch` checks the step before, while the device runs the new one, so the
  device never waits. The loop calls `check` before it saves or evaluates.
  """

  def __init__(self, workdir: str | pathlib.Path):
    self._path = pathlib.Path(workdir) / BAD_BATCH
    self._watched: tuple[int, Any, Any, Any] | None = None

  def watch(
    self, step: int, position: Any, batch: Any, metrics: Mapping[str, Any]
  ) -> None:
    """Remembers a step, and checks the one before.

    Args:
      step: number of the step.
      position: position of the data iterators before the batch.
      batch: tree of arrays, which are saved if the step is not finite.
      metrics: metrics of the step; losses and gradient norms are checked.
    """
    self.check()
    self._watched = (step, position, batch, metrics)

  def check(self) -> None:
    """Raises a UserError if the remembered step is not finite."""
    if self._watched is None:
      return
    step, position, batch, metrics = self._watched
    self._watched = None
    names = [n for n in metrics if "loss" in n or n.startswith("grad_norm")]
    values = jax.device_get({n: metrics[n] for n in names})
    bad = {n: v for n, v in values.items() if not np.isfinite(v).all()}
    if not bad:
      return
    files.write_json_atomic(
      self._path,
      {
        "step": step,
        "data_position": position,
        "metrics": values,
        "batch": _flatten(batch),
      },
      indent=None,
    )
    # A loss is named rather than a gradient.
    name, value = min(bad.items(), key=lambda item: "loss" not in item[0])
    raise UserError(
      f"{name} is {float(value)} at step {step}; the batch is saved here",
      file=str(self._path),
      fix="lower the learning rate or look at that batch; the same command"
      " resumes from the last checkpoint",
      code="not_finite",
    )


def _flatten(batch: Any) -> dict[str, Any]:
  """Maps the path of each leaf to its array."""
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
