"""A search for the best settings by any number of workers: Optuna on SQLite.

All changes to the study are made under one lock, so trials are counted right.
Each trial has a lock of its own, held by the worker that runs it and by the
process itself. The system drops it when they end, by whatever means; then
exactly one other worker gets it, and goes on in the same folder from the
trial's checkpoint. Optuna's own heartbeats would find a dead worker only after
a time-out, take a machine that slept for dead, and start a new trial beside the
old one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from instructgpt_jax import config as config_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.runtime import files
from instructgpt_jax.sweeps import collect, execute, plan, records
from instructgpt_jax.sweeps.cluster import Slurm
from instructgpt_jax.sweeps.grid import Choices, Range
from instructgpt_jax.sweeps.jobs import Job

KINDS = ("random", "tpe")
DIRECTIONS = ("maximize", "minimize")
DATABASE = "search.db"
_PATIENCE = 1.0  # seconds between two looks for a trial to take over


@dataclasses.dataclass(frozen=True)
class Search:
  """How to search, and for what."""

  kind: str
  trials: int
  objective: str  # a number of the runs' summaries, such as accuracy.mean
  direction: str = "maximize"
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Claim:
  """A trial that this process alone may run, while the lock is open."""

  number: int
  job: Job
  lock: int


def trial_name(number: int) -> str:
  """A trial's folder."""
  return f"trials/{number:03}"


class Trials:
  """The trials of a search, shared with other workers."""

  def __init__(
    self,
    root: str,
    wanted: Search,
    space: Mapping[str, Range | Choices],
    make_job: Callable[[str, Mapping[str, Any]], Job],
  ):
    self._root, self._wanted, self._make_job = root, wanted, make_job
    self._lock = records.lock_path(root, "search")
    self._optuna = load_optuna()
    self._space = distributions(self._optuna, space)
    self.left = wanted.trials  # not finished, when last looked at
    path = os.path.abspath(os.path.join(root, DATABASE))
    with records.held(self._lock):
      self._storage = self._optuna.storages.RDBStorage(
        f"sqlite:///{path}",
        engine_kwargs={"connect_args": {"timeout": 120}},
      )
      self._study = self._optuna.create_study(
        study_name="search",
        storage=self._storage,
        direction=wanted.direction,
        load_if_exists=True,
      )

  def aim(self) -> None:
    """Refuses another objective once there is a result for the first."""
    told = [self._optuna.trial.TrialState.COMPLETE]
    new = self._wanted.objective
    with records.held(self._lock):
      old = self._study.user_attrs.get("objective", new)
      if old != new and self._study.get_trials(states=told):
        raise UserError(
          f"was begun with --objective={old}, not {new}",
          file=self._root,
          field="--objective",
          fix="give the old one, or choose another --workdir",
        )
      self._study.set_user_attr("objective", new)

  def close(self) -> None:
    """Closes the data base."""
    self._storage.remove_session()
    self._storage.engine.dispose()

  def claim(self) -> Claim | None:
    """A trial whose worker is gone, else a new one, else None."""
    states = self._optuna.trial.TrialState
    with records.held(self._lock):
      trials = self._study.get_trials(deepcopy=False)
      whole = [t for t in trials if self._whole(t)]
      for trial in trials:
        if trial.state.is_finished():
          continue
        lock = self._try(trial.number)
        if lock is not None and self._whole(trial):
          return self._claimed(trial.number, trial.params, lock)
        if lock is not None:
          # Its worker was killed before all values were chosen: it never ran.
          self._study.tell(trial.number, state=states.FAIL)
          os.close(lock)
      if len(whole) >= self._wanted.trials:
        self.left = sum(not t.state.is_finished() for t in whole)
        return None
      self._study.sampler = sampler(self._optuna, self._wanted, len(trials))
      trial = self._study.ask(self._space)
      lock = self._try(trial.number)
      assert lock is not None
      return self._claimed(trial.number, trial.params, lock)

  def finished(self) -> int:
    """How many trials have ended, well or not."""
    trials = self._study.get_trials(deepcopy=False)
    return sum(t.state.is_finished() and self._whole(t) for t in trials)

  def tell(self, claim: Claim, error: str) -> str:
    """Takes down what became of a trial; gives the error if there is one."""
    states = self._optuna.trial.TrialState
    value = None
    if not error:
      value = objective(self._wanted, claim.job.folder(self._root))
      if not math.isfinite(value):
        error = f"{self._wanted.objective} is {value}"
    with records.held(self._lock):
      plan.note(self._root, claim.job.name, error=error)
      if error:
        self._study.tell(claim.number, state=states.FAIL)
      else:
        self._study.tell(claim.number, value)
    return error

  def _whole(self, trial: Any) -> bool:
    """Whether a trial has all its values."""
    return trial.params.keys() == self._space.keys()

  def _try(self, number: int) -> int | None:
    return records.acquire(records.lock_path(self._root, trial_name(number)))

  def _claimed(self, number: int, params: Mapping, lock: int) -> Claim:
    name = trial_name(number)
    overrides = {field: params[field] for field in self._space}
    plan.begin(self._root, {}, [{"name": name, "overrides": overrides}])
    return Claim(number, self._make_job(name, overrides), lock)


def run(
  root: str,
  wanted: Search,
  space: Mapping[str, Range | Choices],
  make_job: Callable[[str, Mapping[str, Any]], Job],
  *,
  workers: int = 1,
  launcher: str = "local",
  slurm: Slurm | None = None,
  log: Callable[[str], None] = execute.say,
) -> execute.Outcome:
  """Runs trials until so many are finished, with whoever else works at it.

  Args:
    root: the sweep's folder, which holds a plan.
    wanted: how to search.
    space: field → what it may be.
    make_job: (name, overrides) → the job of a trial.
    workers: trials at once in this process.
    launcher: one of `execute.LAUNCHERS`.
    slurm: what a trial asks of the cluster.
    log: is told one line for each trial that ends.

  Returns:
    What became of all trials, those of other workers too.

  Raises:
    UserError: a complete run has no such objective, or the search has results
      for another one.
  """
  trials = Trials(root, wanted, space, make_job)
  try:
    trials.aim()
    place = execute.open_launcher(launcher, root, workers, slurm)
    _work(trials, wanted.trials, place, log)
  finally:
    trials.close()
  return _outcome(root)


def _work(
  trials: Trials,
  total: int,
  place: execute.Launcher,
  log: Callable[[str], None],
) -> None:
  claims: dict[str, Claim] = {}
  look = 0.0
  with execute.following(
    total, trials.finished(), "search", place, log
  ) as watch:
    try:
      while trials.left or claims:
        watch.check()
        while place.free and time.monotonic() >= look:
          claim = trials.claim()
          if claim is None:
            look = time.monotonic() + _PATIENCE
            watch.count(total - trials.left)
          else:
            claims[claim.job.name] = claim
            place.start(claim.job, claim.lock)
            watch.started()
        for ended in place.ended():
          claim = claims[ended.name]
          error = trials.tell(claim, ended.error)
          os.close(claims.pop(ended.name).lock)
          watch.ended(dataclasses.replace(ended, error=error))
          look = 0.0
        time.sleep(place.poll)
    finally:
      place.stop()
      for claim in claims.values():
        os.close(claim.lock)


def _outcome(root: str) -> execute.Outcome:
  outcome = execute.Outcome(seconds=records.read_seconds(root))
  for entry in plan.read(root)["jobs"]:
    name = entry["name"]
    if entry.get("error"):
      outcome.failed[name] = entry["error"]
    elif files.read_complete(os.path.join(root, *name.split("/"))) is not None:
      outcome.done.append(name)
  return outcome


def objective(wanted: Search, folder: str) -> float:
  """The number that is searched for, of a complete run.

  Raises:
    UserError: its summary has no such number.
  """
  summary = collect.flat(files.read_complete(folder) or {})
  value = summary.get(wanted.objective)
  try:
    if not isinstance(value, bool):
      return float(value)  # type: ignore[arg-type]
  except (TypeError, ValueError):
    pass
  numbers = [k for k, v in summary.items() if isinstance(v, int | float)]
  raise UserError(
    f"{wanted.objective!r} is not in the summary of a run",
    file=os.path.join(folder, files.COMPLETE),
    field="--objective",
    fix=config_lib.nearest(wanted.objective, numbers)
    or f"give one of {', '.join(numbers)}",
  )


def sampler(optuna: ModuleType, wanted: Search, count: int) -> Any:
  """What chooses the next trial.

  Its seed depends on how many there are: workers never choose the same, and a
  random search is the same whoever runs it.
  """
  seed = (wanted.seed * 1_000_003 + count) % 2**32
  if wanted.kind == "random":
    return optuna.samplers.RandomSampler(seed=seed)
  return optuna.samplers.TPESampler(seed=seed)


def distributions(
  optuna: ModuleType, space: Mapping[str, Range | Choices]
) -> dict[str, Any]:
  """Field → Optuna's own kind of range."""
  kinds = optuna.distributions
  found = {}
  for field, part in space.items():
    if isinstance(part, Choices):
      found[field] = kinds.CategoricalDistribution(part.values)
    elif part.whole:
      found[field] = kinds.IntDistribution(part.low, part.high, log=part.log)
    else:
      found[field] = kinds.FloatDistribution(part.low, part.high, log=part.log)
  return found


def preview(
  wanted: Search, space: Mapping[str, Range | Choices]
) -> list[dict[str, Any]]:
  """What the first trials set, as far as it does not depend on results."""
  optuna = load_optuna()
  study = optuna.create_study(direction=wanted.direction)
  chosen = distributions(optuna, space)
  found = []
  # TPE chooses at random until it has ten results.
  most = wanted.trials if wanted.kind == "random" else 10
  for count in range(min(wanted.trials, most)):
    study.sampler = sampler(optuna, wanted, count)
    found.append(dict(study.ask(chosen).params))
  return found


def load_optuna() -> ModuleType:
  """The package; a UserError where it is not installed."""
  try:
    import optuna
  except ImportError as error:
    raise UserError(
      "the package optuna is not installed",
      field="--search",
      fix="pip install optuna (extra 'sweeps'), or leave --search out",
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna
