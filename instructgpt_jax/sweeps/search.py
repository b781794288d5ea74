"""Searches for the best settings with any number of workers: Optuna on SQLite.

All changes to the study are made under one lock, so trials are counted right.
Each trial has its own lock, which the worker and the trial's process hold. The
operating system releases it when both end. One other worker then takes it and
resumes from the trial's checkpoint in the same workdir. Optuna's heartbeats
would notice a dead worker only after a time-out, would mistake a suspended host
for a dead one, and would start a new trial.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import collect, execute, records, sweep_file
from instructgpt_jax.sweeps.cluster import Slurm
from instructgpt_jax.sweeps.grid import Choices, Range
from instructgpt_jax.sweeps.jobs import Job

KINDS = ("random", "tpe")
DIRECTIONS = ("maximize", "minimize")
DATABASE = "search.db"
_RETRY_SECONDS = 1.0  # seconds between two attempts to take over a trial
# Complete runs without the objective, and none with it, before a search fails.
_MAX_WITHOUT_OBJECTIVE = 5
# Attributes of the study and of a trial.
_OBJECTIVE, _KNOWN, _UNDECIDED = "objective", "known", "undecided"
_NOT_FINITE = ("nan", "inf", "-inf")  # as `files.to_json_values` writes them


@dataclasses.dataclass(frozen=True)
class Search:
  """Settings of a search.

  Attributes:
    kind: one of KINDS.
    trials: number of trials.
    objective: number in the runs' summaries, such as accuracy.mean.
    direction: one of DIRECTIONS.
    seed: seed of the sampler.
  """

  kind: str
  trials: int
  objective: str
  direction: str = "maximize"
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Claim:
  """Trial that only this process may run while it holds the lock."""

  number: int
  job: Job
  lock: int


def trial_name(number: int) -> str:
  """Returns the name of a trial's workdir."""
  return f"trials/{number:03}"


class Trials:
  """Trials of a search, shared with other workers."""

  def __init__(
    self,
    root: str,
    search: Search,
    space: Mapping[str, Range | Choices],
    make_job: Callable[[str, Mapping[str, Any]], Job],
  ):
    self.root, self.search, self._make_job = root, search, make_job
    self._lock = records.lock_path(root, "search")
    self._optuna = load_optuna()
    self._space = optuna_distributions(self._optuna, space)
    self.num_left = search.trials  # unfinished trials at the last check
    self._worker: int | None = None  # lock that all live workers share
    path = os.path.abspath(os.path.join(root, DATABASE))
    with records.locked(self._lock):
      self._storage = self._optuna.storages.RDBStorage(
        f"sqlite:///{path}",
        engine_kwargs={"connect_args": {"timeout": 120}},
      )
      self._study = self._optuna.create_study(
        study_name="search",
        storage=self._storage,
        direction=search.direction,
        load_if_exists=True,
      )

  def set_objective(self) -> None:
    """Joins the workers of the search, which share one objective.

    Raises:
      UserError: there is a result, an unfinished trial or a live worker for
        another objective, or the study has another direction.
    """
    path = records.lock_path(self.root, "workers")
    new = self.search.objective
    with records.locked(self._lock):
      self._check_direction()
      old = self._study.user_attrs.get(_OBJECTIVE, new)
      if old != new:
        alone = records.acquire(path)
        if alone is not None:
          os.close(alone)
        if alone is None or self._has_results():
          raise UserError(
            f"was begun with --objective={old}, not {new}",
            file=self.root,
            field="--objective",
            fix="give the old one, or choose another --workdir",
            code="other_objective",
          )
        self._study.set_user_attr(_KNOWN, False)
      self._study.set_user_attr(_OBJECTIVE, new)
      self._worker = records.acquire(path, shared=True)

  def _check_direction(self) -> None:
    old = self._study.direction.name.lower()
    if old != self.search.direction:
      raise UserError(
        f"was begun with --direction={old}, not {self.search.direction}",
        file=self.root,
        field="--direction",
        fix="give the old one, or choose another --workdir",
        code="other_direction",
      )

  def _has_results(self) -> bool:
    """Whether a trial has a result, or will have one, for the objective."""
    failed = self._optuna.trial.TrialState.FAIL
    return any(
      self._has_all_values(trial)
      and trial.state != failed
      and _UNDECIDED not in trial.user_attrs
      for trial in self._study.get_trials(deepcopy=False)
    )

  def close(self) -> None:
    """Leaves the workers and closes the database."""
    if self._worker is not None:
      os.close(self._worker)
      self._worker = None
    self._storage.remove_session()
    self._storage.engine.dispose()

  def claim(self) -> Claim | None:
    """Claims a trial whose worker has ended, or a new one.

    Returns:
      The claim; None if no trial is left to start.
    """
    states = self._optuna.trial.TrialState
    with records.locked(self._lock):
      trials = self._study.get_trials(deepcopy=False)
      complete = [t for t in trials if self._has_all_values(t)]
      for trial in trials:
        if self._is_finished(trial):
          continue
        lock = self._try_lock(trial.number)
        if lock is not None and self._has_all_values(trial):
          return self._make_claim(trial.number, trial.params, lock)
        if lock is not None:
          # Its worker was killed before all values were chosen: it never ran.
          self._study.tell(trial.number, state=states.FAIL)
          os.close(lock)
      if len(complete) >= self.search.trials:
        self.num_left = sum(not self._is_finished(t) for t in complete)
        return None
      self._study.sampler = make_sampler(self._optuna, self.search, len(trials))
      trial = self._study.ask(self._space)
      lock = self._try_lock(trial.number)
      assert lock is not None
      return self._make_claim(trial.number, trial.params, lock)

  def num_finished(self) -> int:
    """Counts the trials that have ended, failed ones included."""
    trials = self._study.get_trials(deepcopy=False)
    return sum(self._is_finished(t) and self._has_all_values(t) for t in trials)

  def record(self, claim: Claim, error: str) -> str:
    """Records the result of a trial; returns its error, or "".

    A complete run without the objective is a failed trial if another run has
    it. Until one has it, the trial is undecided: the objective's name may be
    wrong, and the run usable for the right name.

    Raises:
      UserError: several runs are complete, and none has a field of that name.
    """
    workdir = claim.job.workdir(self.root)
    fail = self._optuna.trial.TrialState.FAIL
    value, missing = None, False
    if not error:
      value = read_objective(self.search, workdir)
      missing = value is None
      if value is None:
        error = f"its complete.json has no number {self.search.objective!r}"
      elif not math.isfinite(value):
        error = f"{self.search.objective} is {value}"
    with records.locked(self._lock):
      sweep_file.update_entry(self.root, claim.job.name, error=error)
      if value is not None:
        self._confirm_objective()
      if missing and not self._is_objective_known():
        self._postpone(claim.number)
      elif error:
        self._study.tell(claim.number, state=fail)
      else:
        self._study.tell(claim.number, value)
    if missing and self._num_without_objective() >= _MAX_WITHOUT_OBJECTIVE:
      raise self._objective_error()
    return error

  def check_objective(self) -> None:
    """Raises a UserError where runs are complete but none has the objective."""
    if self._undecided():
      raise self._objective_error()

  def _confirm_objective(self) -> None:
    """Records that a run has the objective; undecided trials have failed."""
    if not self._is_objective_known():
      self._study.set_user_attr(_KNOWN, True)
    for trial in self._undecided():
      self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

  def _is_objective_known(self) -> bool:
    """Returns whether any run has had the objective, even as NaN."""
    complete = [self._optuna.trial.TrialState.COMPLETE]
    return self._study.user_attrs.get(_KNOWN, False) or bool(
      self._study.get_trials(deepcopy=False, states=complete)
    )

  def _postpone(self, number: int) -> None:
    trial = self._study.get_trials(deepcopy=False)[number]
    self._storage.set_trial_user_attr(
      trial._trial_id, _UNDECIDED, self.search.objective
    )

  def _undecided(self) -> list[Any]:
    """Returns trials that are complete, while no run has the objective."""
    return [
      trial
      for trial in self._study.get_trials(deepcopy=False)
      if not trial.state.is_finished() and self._is_finished(trial)
    ]

  def _summary(self, trial: Any) -> dict[str, Any]:
    workdir = os.path.join(self.root, *trial_name(trial.number).split("/"))
    return collect.flatten(files.read_complete(workdir) or {})

  def _num_without_objective(self) -> int:
    """Counts undecided trials without a field of the objective's name."""
    name = self.search.objective
    return sum(name not in self._summary(t) for t in self._undecided())

  def _objective_error(self) -> UserError:
    """Returns the error for complete runs without the objective."""
    trials = self._undecided()
    numbers = dict.fromkeys(
      name
      for trial in trials
      for name, value in self._summary(trial).items()
      if _number(value) is not None
    )
    names = f"give one of {', '.join(numbers)}" if numbers else ""
    return UserError(
      f"none of the {len(trials)} complete runs has a number"
      f" {self.search.objective!r}",
      file=os.path.join(
        self.root, *trial_name(trials[0].number).split("/"), files.COMPLETE
      ),
      field="--objective",
      fix=configs.nearest(self.search.objective, numbers) or names,
      code="no_objective",
    )

  def _is_finished(self, trial: Any) -> bool:
    """Returns whether a trial needs no more work."""
    undecided = trial.user_attrs.get(_UNDECIDED)
    return trial.state.is_finished() or undecided == self.search.objective

  def _has_all_values(self, trial: Any) -> bool:
    """Returns whether all values of a trial were chosen."""
    return trial.params.keys() == self._space.keys()

  def _try_lock(self, number: int) -> int | None:
    return records.acquire(records.lock_path(self.root, trial_name(number)))

  def _make_claim(self, number: int, params: Mapping, lock: int) -> Claim:
    name = trial_name(number)
    overrides = {field: params[field] for field in self._space}
    sweep_file.write_sweep(
      self.root, {}, [{"name": name, "overrides": overrides}]
    )
    return Claim(number, self._make_job(name, overrides), lock)


@contextlib.contextmanager
def join_search(
  root: str,
  search: Search,
  space: Mapping[str, Range | Choices],
  make_job: Callable[[str, Mapping[str, Any]], Job],
) -> Iterator[Trials]:
  """Joins the search's workers during the block.

  Args:
    root: the sweep's directory, which holds sweep.json.
    search: settings of the search.
    space: field → its range or choices.
    make_job: (name, overrides) → the job of a trial.

  Raises:
    UserError: no complete run has the objective, or the search has trials or
      workers for another one.
  """
  trials = Trials(root, search, space, make_job)
  try:
    trials.set_objective()
    yield trials
  finally:
    trials.close()


def run_trials(
  trials: Trials,
  *,
  workers: int = 1,
  launcher: str = "local",
  slurm: Slurm | None = None,
  log: Callable[[str], None] = execute.log_line,
) -> execute.Outcome:
  """Runs trials, with other workers, until `Search.trials` are finished.

  Args:
    trials: a search that this process has joined.
    workers: trials at once in this process.
    launcher: one of `execute.LAUNCHERS`.
    slurm: resources of each trial on a cluster.
    log: called with a line for each trial that ends.

  Returns:
    The results of all trials, those of other workers included.
  """
  opened = execute.open_launcher(launcher, trials.root, workers, slurm)
  _run_loop(trials, trials.search.trials, opened, log)
  trials.check_objective()
  return _read_outcome(trials.root)


def _run_loop(
  trials: Trials,
  total: int,
  launcher: execute.Launcher,
  log: Callable[[str], None],
) -> None:
  claims: dict[str, Claim] = {}
  next_attempt = 0.0
  with execute.monitor_sweep(
    total, trials.num_finished(), "search", launcher, log
  ) as monitor:
    try:
      while trials.num_left or claims:
        monitor.check()
        while launcher.free_slots and time.monotonic() >= next_attempt:
          claim = trials.claim()
          if claim is None:
            next_attempt = time.monotonic() + _RETRY_SECONDS
            monitor.count(total - trials.num_left)
          else:
            claims[claim.job.name] = claim
            launcher.start(claim.job, claim.lock)
            monitor.started()
        for ended in launcher.pop_finished():
          claim = claims[ended.name]
          error = trials.record(claim, ended.error)
          os.close(claims.pop(ended.name).lock)
          monitor.ended(dataclasses.replace(ended, error=error))
          next_attempt = 0.0
        time.sleep(launcher.poll)
    finally:
      launcher.stop()
      for claim in claims.values():
        os.close(claim.lock)


def _read_outcome(root: str) -> execute.Outcome:
  outcome = execute.Outcome(seconds=records.read_seconds(root))
  for entry in sweep_file.read_sweep(root)["jobs"]:
    name = entry["name"]
    if entry.get("error"):
      outcome.failed[name] = entry["error"]
    elif files.read_complete(os.path.join(root, *name.split("/"))) is not None:
      outcome.done.append(name)
  return outcome


def read_objective(search: Search, workdir: str) -> float | None:
  """Returns the objective of a complete run; None if there is none.

  NaN and infinity are numbers here.
  """
  summary = collect.flatten(files.read_complete(workdir) or {})
  return _number(summary.get(search.objective))


def _number(value: Any) -> float | None:
  if isinstance(value, bool) or not isinstance(value, (int, float, str)):
    return None
  if isinstance(value, str) and value not in _NOT_FINITE:
    return None
  try:
    return float(value)
  except OverflowError:  # a whole number beyond float64
    return math.inf if int(value) > 0 else -math.inf


def make_sampler(optuna: ModuleType, search: Search, count: int) -> Any:
  """Returns the sampler that chooses the next trial.

  Its seed depends on the number of trials. So workers never choose the same
  values, and a random search does not depend on the workers.
  """
  seed = (search.seed * 1_000_003 + count) % 2**32
  if search.kind == "random":
    return optuna.samplers.RandomSampler(seed=seed)
  return optuna.samplers.TPESampler(seed=seed)


def optuna_distributions(
  optuna: ModuleType, space: Mapping[str, Range | Choices]
) -> dict[str, Any]:
  """Returns Optuna's distribution for each field."""
  kinds = optuna.distributions
  result = {}
  for field, part in space.items():
    if isinstance(part, Choices):
      result[field] = kinds.CategoricalDistribution(part.values)
    elif part.integer:
      result[field] = kinds.IntDistribution(part.low, part.high, log=part.log)
    else:
      result[field] = kinds.FloatDistribution(part.low, part.high, log=part.log)
  return result


def preview_trials(
  search: Search, space: Mapping[str, Range | Choices]
) -> list[dict[str, Any]]:
  """Returns the values of the first trials, which depend on no result."""
  optuna = load_optuna()
  study = optuna.create_study(direction=search.direction)
  chosen = optuna_distributions(optuna, space)
  overrides = []
  # TPE samples at random until it has ten results.
  count_limit = search.trials if search.kind == "random" else 10
  for count in range(min(search.trials, count_limit)):
    study.sampler = make_sampler(optuna, search, count)
    overrides.append(dict(study.ask(chosen).params))
  return overrides


def load_optuna() -> ModuleType:
  """Imports optuna.

  Raises:
    UserError: it is not installed.
  """
  try:
    import optuna
  except ImportError as error:
    raise UserError(
      "the package optuna is not installed",
      field="--search",
      fix="pip install optuna (extra 'sweeps'), or leave --search out",
      code="missing_package",
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna
