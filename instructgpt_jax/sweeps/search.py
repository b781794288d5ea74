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
from instructgpt_jax.sweeps import collect, execute, plan, records
from instructgpt_jax.sweeps.cluster import Slurm
from instructgpt_jax.sweeps.grid import Choices, Range
from instructgpt_jax.sweeps.jobs import Job

KINDS = ("random", "tpe")
DIRECTIONS = ("maximize", "minimize")
DATABASE = "search.db"
_PATIENCE = 1.0  # seconds between two looks for a trial to take over
# Complete runs without a field of the objective's name, and none with it, after
# which the name is taken for a mistake.
_ABSENT = 5
# Attributes of the study and of a trial.
_OBJECTIVE, _KNOWN, _UNDECIDED = "objective", "known", "undecided"
_NOT_FINITE = ("nan", "inf", "-inf")  # as `files.to_json_values` writes them


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
    search: Search,
    space: Mapping[str, Range | Choices],
    make_job: Callable[[str, Mapping[str, Any]], Job],
  ):
    self.root, self.search, self._make_job = root, search, make_job
    self._lock = records.lock_path(root, "search")
    self._optuna = load_optuna()
    self._space = distributions(self._optuna, space)
    self.left = search.trials  # not finished, when last looked at
    self._worker: int | None = None  # the lock that all live workers share
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

  def aim(self) -> None:
    """Joins the workers of the search; all have one objective.

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
        if alone is None or self._has_trials_of_its_own():
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

  def _has_trials_of_its_own(self) -> bool:
    """Whether a trial has a result, or will have one, for the objective."""
    failed = self._optuna.trial.TrialState.FAIL
    return any(
      self._whole(trial)
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
    """A trial whose worker is gone, else a new one, else None."""
    states = self._optuna.trial.TrialState
    with records.locked(self._lock):
      trials = self._study.get_trials(deepcopy=False)
      whole = [t for t in trials if self._whole(t)]
      for trial in trials:
        if self._ended(trial):
          continue
        lock = self._try(trial.number)
        if lock is not None and self._whole(trial):
          return self._claimed(trial.number, trial.params, lock)
        if lock is not None:
          # Its worker was killed before all values were chosen: it never ran.
          self._study.tell(trial.number, state=states.FAIL)
          os.close(lock)
      if len(whole) >= self.search.trials:
        self.left = sum(not self._ended(t) for t in whole)
        return None
      self._study.sampler = sampler(self._optuna, self.search, len(trials))
      trial = self._study.ask(self._space)
      lock = self._try(trial.number)
      assert lock is not None
      return self._claimed(trial.number, trial.params, lock)

  def finished(self) -> int:
    """How many trials have ended, well or not."""
    trials = self._study.get_trials(deepcopy=False)
    return sum(self._ended(t) and self._whole(t) for t in trials)

  def tell(self, claim: Claim, error: str) -> str:
    """Records the result of a trial; returns its error, or "".

    A complete run without the objective is a failed trial if another run has
    it. Until one has it, the trial is undecided: the objective's name may be
    wrong, and the run usable for the right name.

    Raises:
      UserError: several runs are complete, and none has a field of that name.
    """
    folder = claim.job.folder(self.root)
    fail = self._optuna.trial.TrialState.FAIL
    value, missing = None, False
    if not error:
      value = objective(self.search, folder)
      missing = value is None
      if value is None:
        error = f"its complete.json has no number {self.search.objective!r}"
      elif not math.isfinite(value):
        error = f"{self.search.objective} is {value}"
    with records.locked(self._lock):
      plan.note(self.root, claim.job.name, error=error)
      if value is not None:
        self._decide()
      if missing and not self._is_known():
        self._postpone(claim.number)
      elif error:
        self._study.tell(claim.number, state=fail)
      else:
        self._study.tell(claim.number, value)
    if missing and self._absent() >= _ABSENT:
      raise self._no_objective()
    return error

  def check_objective(self) -> None:
    """Raises a UserError where runs are complete but none has the objective."""
    if self._undecided():
      raise self._no_objective()

  def _decide(self) -> None:
    """Notes that a run has the objective: undecided trials have failed."""
    if not self._is_known():
      self._study.set_user_attr(_KNOWN, True)
    for trial in self._undecided():
      self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

  def _is_known(self) -> bool:
    """Whether a run has had the objective, if only as NaN."""
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
      if not trial.state.is_finished() and self._ended(trial)
    ]

  def _summary(self, trial: Any) -> dict[str, Any]:
    folder = os.path.join(self.root, *trial_name(trial.number).split("/"))
    return collect.flat(files.read_complete(folder) or {})

  def _absent(self) -> int:
    """Counts undecided trials without a field of the objective's name."""
    name = self.search.objective
    return sum(name not in self._summary(t) for t in self._undecided())

  def _no_objective(self) -> UserError:
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

  def _ended(self, trial: Any) -> bool:
    """Whether nothing is left to do for a trial."""
    undecided = trial.user_attrs.get(_UNDECIDED)
    return trial.state.is_finished() or undecided == self.search.objective

  def _whole(self, trial: Any) -> bool:
    """Whether a trial has all its values."""
    return trial.params.keys() == self._space.keys()

  def _try(self, number: int) -> int | None:
    return records.acquire(records.lock_path(self.root, trial_name(number)))

  def _claimed(self, number: int, params: Mapping, lock: int) -> Claim:
    name = trial_name(number)
    overrides = {field: params[field] for field in self._space}
    plan.begin(self.root, {}, [{"name": name, "overrides": overrides}])
    return Claim(number, self._make_job(name, overrides), lock)


def run(
  root: str,
  search: Search,
  space: Mapping[str, Range | Choices],
  make_job: Callable[[str, Mapping[str, Any]], Job],
  *,
  workers: int = 1,
  launcher: str = "local",
  slurm: Slurm | None = None,
  log: Callable[[str], None] = execute.say,
) -> execute.Outcome:
  """Runs trials until `search.trials` are finished, beside other workers.

  Args:
    root: the sweep's directory, which holds a plan.
    search: settings of the search.
    space: field → its range or choices.
    make_job: (name, overrides) → the job of a trial.
    workers: trials at once in this process.
    launcher: one of `execute.LAUNCHERS`.
    slurm: what a trial asks of the cluster.
    log: is told one line for each trial that ends.

  Returns:
    What became of all trials, those of other workers too.

  Raises:
    UserError: no complete run has the objective, or the search has trials or
      workers for another one.
  """
  with joined(root, search, space, make_job) as trials:
    return run_trials(
      trials, workers=workers, launcher=launcher, slurm=slurm, log=log
    )


@contextlib.contextmanager
def joined(
  root: str,
  search: Search,
  space: Mapping[str, Range | Choices],
  make_job: Callable[[str, Mapping[str, Any]], Job],
) -> Iterator[Trials]:
  """Joins the search's workers during the block.

  Args and errors are those of `run`.
  """
  trials = Trials(root, search, space, make_job)
  try:
    trials.aim()
    yield trials
  finally:
    trials.close()


def run_trials(
  trials: Trials,
  *,
  workers: int = 1,
  launcher: str = "local",
  slurm: Slurm | None = None,
  log: Callable[[str], None] = execute.say,
) -> execute.Outcome:
  """Runs trials of a search that this process has joined, as `run` does."""
  place = execute.open_launcher(launcher, trials.root, workers, slurm)
  _work(trials, trials.search.trials, place, log)
  trials.check_objective()
  return _outcome(trials.root)


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


def objective(search: Search, folder: str) -> float | None:
  """Returns the objective of a complete run; None if there is none.

  NaN and infinity are numbers here.
  """
  summary = collect.flat(files.read_complete(folder) or {})
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


def sampler(optuna: ModuleType, search: Search, count: int) -> Any:
  """Returns the sampler that chooses the next trial.

  Its seed depends on how many there are: workers never choose the same, and a
  random search is the same whoever runs it.
  """
  seed = (search.seed * 1_000_003 + count) % 2**32
  if search.kind == "random":
    return optuna.samplers.RandomSampler(seed=seed)
  return optuna.samplers.TPESampler(seed=seed)


def distributions(
  optuna: ModuleType, space: Mapping[str, Range | Choices]
) -> dict[str, Any]:
  """Field → Optuna's own kind of range."""
  kinds = optuna.distributions
  result = {}
  for field, part in space.items():
    if isinstance(part, Choices):
      result[field] = kinds.CategoricalDistribution(part.values)
    elif part.whole:
      result[field] = kinds.IntDistribution(part.low, part.high, log=part.log)
    else:
      result[field] = kinds.FloatDistribution(part.low, part.high, log=part.log)
  return result


def preview(
  search: Search, space: Mapping[str, Range | Choices]
) -> list[dict[str, Any]]:
  """What the first trials set, as far as it does not depend on results."""
  optuna = load_optuna()
  study = optuna.create_study(direction=search.direction)
  chosen = distributions(optuna, space)
  overrides = []
  # TPE chooses at random until it has ten results.
  most = search.trials if search.kind == "random" else 10
  for count in range(min(search.trials, most)):
    study.sampler = sampler(optuna, search, count)
    overrides.append(dict(study.ask(chosen).params))
  return overrides


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
