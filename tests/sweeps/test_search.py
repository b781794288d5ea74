"""Searches: every trial once, whatever happens to their workers."""

import contextlib
import math
import os
import signal
import sqlite3
import sys

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import execute, grid, processes, search, sweep_file
from tests.sweeps.fake import counter, sweep
from tests.sweeps.runs import (
  at_the_gate,
  gone,
  job,
  starts,
  summary,
  wait_for,
)

TEXT = "section.rate=log:0.1:1;section.size=int:1:3"
SPACE = grid.search_space(TEXT, counter.get_config())
WANTED = search.Search("random", 4, "score.mean", seed=3)


def make_job(name, overrides, **more):
  flags = {k.replace(".", "_"): v for k, v in {**overrides, **more}.items()}
  return job(name, **flags)


def run(root, expected=WANTED, make=make_job, **more):
  root = str(root)
  sweep_file.write_sweep(root, {}, [])
  with search.join_search(root, expected, SPACE, make) as trials:
    return search.run_trials(trials, log=lambda text: None, **more)


def states(root):
  """Returns state → number of trials, from the database."""
  with contextlib.closing(sqlite3.connect(root / search.DATABASE)) as base:
    return dict(
      base.execute("SELECT state, COUNT(*) FROM trials GROUP BY state")
    )


def results(root):
  """Returns trial → its value in Optuna."""
  with contextlib.closing(sqlite3.connect(root / search.DATABASE)) as base:
    return dict(
      base.execute(
        "SELECT t.number, v.value FROM trials t"
        " JOIN trial_values v ON v.trial_id = t.trial_id"
      )
    )


@pytest.mark.parametrize("kind", search.KINDS)
def test_a_search_runs_the_requested_number_of_trials(tmp_path, kind):
  expected = search.Search(kind, 3, "score.mean", "minimize")
  outcome = run(tmp_path, expected, workers=2)
  names = [f"trials/{n:03}" for n in range(3)]
  assert sorted(outcome.done) == names and not outcome.failed
  assert states(tmp_path) == {"COMPLETE": 3}
  for entry in sweep_file.read_sweep(str(tmp_path))["jobs"]:
    workdir = tmp_path / entry["name"]
    config = files.read_json(workdir / "config.json")["config"]["section"]
    overrides = entry["overrides"]
    assert config["rate"] == overrides["section.rate"]
    assert config["size"] == overrides["section.size"] in (1, 2, 3)
    assert 0.1 <= config["rate"] <= 1
    score = summary(workdir)["score"]["mean"]
    assert results(tmp_path)[int(entry["name"][-3:])] == score
  # Nothing is left to do; more trials resume from there.
  run(tmp_path, expected)
  assert all(len(starts(tmp_path / name)) == 1 for name in names)
  run(tmp_path, search.Search(kind, 4, "score.mean", "minimize"))
  assert states(tmp_path) == {"COMPLETE": 4}


def test_a_random_search_is_the_same_for_any_worker(tmp_path):
  run(tmp_path, workers=3)
  result = [
    entry["overrides"] for entry in sweep_file.read_sweep(str(tmp_path))["jobs"]
  ]
  assert result == search.preview_trials(WANTED, SPACE)
  assert len({str(values) for values in result}) == 4
  other = search.Search("random", 4, "score.mean", seed=4)
  assert search.preview_trials(other, SPACE)[0] != result[0]


def test_a_failed_trial_is_reported_and_does_not_stop_the_search(tmp_path):
  def make(name, overrides):
    return make_job(name, overrides, fail="error" if name[-1] == "1" else "")

  outcome = run(tmp_path, make=make)
  assert states(tmp_path) == {"COMPLETE": 3, "FAIL": 1}
  assert outcome.failed["trials/001"].endswith("RuntimeError: it broke")
  assert len(outcome.done) == 3
  # It is reported by a later call as well, and not run again.
  assert run(tmp_path, make=make).failed == outcome.failed
  assert len(starts(tmp_path / "trials/001")) == 1


class Instant:
  """Launcher whose runs are complete at once."""

  poll = 0.0

  def __init__(self, root, summaries):
    self._root, self._summaries = root, summaries
    self.running, self.started = [], []

  @property
  def free_slots(self):
    return 1 - len(self.running)

  def start(self, job, lock, alone=False):
    self.running.append(job.name)
    if files.read_complete(job.workdir(self._root)) is None:
      number = int(job.name[-3:])
      summary = self._summaries[number % len(self._summaries)]
      files.mark_complete(job.workdir(self._root), summary)
      self.started.append(number)

  def pop_finished(self):
    finished = [processes.FinishedJob(name) for name in self.running]
    self.running.clear()
    return finished

  def stop(self):
    pass


def run_with(root, monkeypatch, summaries, trials, objective="a"):
  """Runs a search over fake summaries; returns (outcome, launcher)."""
  launcher = Instant(str(root), summaries)
  monkeypatch.setattr(execute, "open_launcher", lambda *unused: launcher)
  expected = search.Search("random", trials, objective)
  return lambda: run(root, expected), launcher


@pytest.mark.parametrize(
  "value",
  [math.nan, math.inf, -math.inf, 10**400],
  ids=["nan", "inf", "-inf", "huge"],
)
def test_an_infinite_objective_is_a_failure(tmp_path, monkeypatch, value):
  call, _ = run_with(tmp_path, monkeypatch, [{"a": value}], 2)
  outcome = call()
  assert set(outcome.failed) == {"trials/000", "trials/001"}
  assert "inf" in outcome.failed["trials/000"] or math.isnan(value)
  assert states(tmp_path) == {"FAIL": 2}


@pytest.mark.parametrize(
  "summary", [{"a": None}, {}, {"a": True}, {"a": "1.5"}, {"a": [1]}, {"b": 2}]
)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_run_without_the_objective_is_one_failed_trial(
  tmp_path, monkeypatch, summary, at
):
  summaries: list = [{"a": 1.0}] * 4
  summaries[at] = summary
  call, launcher = run_with(tmp_path, monkeypatch, summaries, 4)
  outcome = call()
  assert list(outcome.failed) == [f"trials/{at:03}"]
  assert len(outcome.done) == 3 and launcher.started == [0, 1, 2, 3]
  assert states(tmp_path) == {"COMPLETE": 3, "FAIL": 1}
  # The same command finds nothing left to do.
  assert call().failed == outcome.failed and len(launcher.started) == 4


def test_several_runs_without_the_objective_before_one_that_has_it(
  tmp_path, monkeypatch
):
  summaries = [{}, {"a": None}, {}, {"a": math.nan}, {"a": 2}, {}]
  call, _ = run_with(tmp_path, monkeypatch, summaries, 6)
  outcome = call()
  assert outcome.done == ["trials/004"] and len(outcome.failed) == 5
  assert states(tmp_path) == {"COMPLETE": 1, "FAIL": 5}


def test_an_objective_that_no_run_has_is_an_error(tmp_path, monkeypatch):
  call, launcher = run_with(tmp_path, monkeypatch, [{"a": None, "b": 1}], 3)
  for _ in range(2):
    with pytest.raises(UserError) as error:
      call()
    assert error.value.code == "no_objective"
    assert error.value.field == "--objective"
    assert error.value.file == str(tmp_path / "trials/000/complete.json")
  assert launcher.started == [0, 1, 2]
  # More trials go on, and the runs serve another objective.
  call, launcher = run_with(tmp_path, monkeypatch, [{"b": 1}], 4, "b")
  assert len(call().done) == 4 and launcher.started == [3]
  assert states(tmp_path) == {"COMPLETE": 4}


def test_a_mistyped_objective_ends_a_long_search_early(tmp_path, monkeypatch):
  call, launcher = run_with(tmp_path, monkeypatch, [{"loss": 1}], 50, "lose")
  with pytest.raises(UserError) as error:
    call()
  assert error.value.code == "no_objective" and "'loss'" in error.value.fix
  assert len(launcher.started) == 5


def test_a_missing_objective_lists_the_metrics_and_loses_no_run(tmp_path):
  wrong = search.Search("random", 2, "score.meen")
  with pytest.raises(UserError) as error:
    run(tmp_path, wrong)
  assert error.value.field == "--objective"
  assert error.value.code == "no_objective"
  assert "did you mean 'score.mean'?" in str(error.value)
  for name in ("text", "score"):  # no numbers
    with pytest.raises(UserError, match="--objective"):
      run(tmp_path, search.Search("random", 2, name))
  run(tmp_path, search.Search("random", 2, "score.mean"))
  assert states(tmp_path) == {"COMPLETE": 2}
  assert len(sweep_file.read_sweep(str(tmp_path))["jobs"]) == 2


def test_another_objective_is_refused_once_there_are_results(tmp_path):
  run(tmp_path, search.Search("random", 1, "score.mean"))
  with pytest.raises(UserError) as error:
    run(tmp_path, search.Search("random", 2, "score.low"))
  assert error.value.code == "other_objective"
  with pytest.raises(UserError) as error:
    run(tmp_path, search.Search("random", 2, "score.mean", "minimize"))
  assert error.value.code == "other_direction"


def opened(root, name, direction="maximize"):
  sweep_file.write_sweep(str(root), {}, [])
  expected = search.Search("random", 2, name, direction)
  return search.join_search(str(root), expected, SPACE, make_job)


@pytest.mark.parametrize(
  "name, direction, code",
  [
    ("score.low", "maximize", "other_objective"),
    ("score.mean", "minimize", "other_direction"),
  ],
)
def test_live_workers_of_a_search_have_one_aim(tmp_path, name, direction, code):
  with opened(tmp_path, "score.mean") as one:
    # There is no trial as yet, only a worker.
    with pytest.raises(UserError) as error:
      with opened(tmp_path, name, direction):
        pass
    assert error.value.code == code
    assert error.value.field in ("--objective", "--direction")
    with opened(tmp_path, "score.mean") as two:
      assert two.claim().number == 0
    assert one.claim().number == 1


def test_an_unfinished_trial_holds_its_objective(tmp_path):
  with opened(tmp_path, "score.mean") as one:
    claim = one.claim()
    os.close(claim.lock)  # as when its worker is killed
  with pytest.raises(UserError) as error:
    with opened(tmp_path, "score.low"):
      pass
  assert error.value.code == "other_objective"
  with opened(tmp_path, "score.mean") as two:
    assert two.claim().number == 0


def test_without_trials_or_workers_the_objective_may_change(tmp_path):
  for name in ("score.mean", "score.low", "score.mean"):
    with opened(tmp_path, name):
      pass


def test_a_trial_without_all_its_values_is_abandoned(tmp_path):
  # As when a worker is killed while it asks for one.
  sweep_file.write_sweep(str(tmp_path), {}, [])
  trials = search.Trials(str(tmp_path), WANTED, SPACE, make_job)
  trials._study.ask()
  trials.close()
  outcome = run(tmp_path)
  assert states(tmp_path) == {"COMPLETE": 4, "FAIL": 1}
  assert len(outcome.done) == 4


def test_a_trial_belongs_to_one_worker_until_it_is_gone(tmp_path):
  sweep_file.write_sweep(str(tmp_path), {}, [])
  expected = search.Search("random", 2, "score.mean")
  one = search.Trials(str(tmp_path), expected, SPACE, make_job)
  two = search.Trials(str(tmp_path), expected, SPACE, make_job)
  first, second = one.claim(), two.claim()
  assert (first.number, second.number) == (0, 1)
  assert one.claim() is None and two.claim() is None
  assert one.num_left == two.num_left == 2
  os.close(first.lock)
  again = two.claim()
  assert again.number == 0 and again.job == first.job
  assert one.claim() is None
  for claim in (again, second):
    os.close(claim.lock)
  for trials in (one, two):
    trials.close()


def argv(root, trials):
  return (
    f"--sweep={TEXT}",
    "--search=random",
    "--objective=score.mean",
    f"--trials={trials}",
    "--steps=5",
    f"--gate={root}/gate",
  )


def test_three_workers_one_of_them_killed(tmp_path, start_sweep):
  workers = [start_sweep(tmp_path, *argv(tmp_path, 6)) for _ in range(3)]
  workdir, *_ = [
    wait_for(lambda w=worker: at_the_gate(tmp_path, w)) for worker in workers
  ]
  victim, *others = workers
  victim.send_signal(signal.SIGKILL)
  victim.communicate(timeout=300)
  (tmp_path / "gate").touch()
  for worker in others:
    out, error = worker.communicate(timeout=300)
    assert worker.returncode == 0, error
    assert "results.csv" in out

  assert states(tmp_path) == {"COMPLETE": 6}
  names = {
    entry["name"] for entry in sweep_file.read_sweep(str(tmp_path))["jobs"]
  }
  assert names == {f"trials/{n:03}" for n in range(6)}
  for name in names:
    assert summary(tmp_path / name)["count"] == 5
    counts = [count for _, count, _ in starts(tmp_path / name)]
    assert counts == ([0, 3] if tmp_path / name == workdir else [0])


def test_a_later_call_resumes_a_killed_trial(tmp_path, start_sweep):
  worker = start_sweep(tmp_path, *argv(tmp_path, 2))
  workdir = wait_for(lambda: at_the_gate(tmp_path))
  worker.send_signal(signal.SIGKILL)
  worker.communicate(timeout=300)
  ((child, _, _),) = starts(workdir)
  gone(child)
  (tmp_path / "gate").touch()
  status = sweep.main(
    "--experiment=counter", f"--workdir={tmp_path}", *argv(tmp_path, 2)
  )
  assert status == 0
  assert states(tmp_path) == {"COMPLETE": 2}
  assert [count for _, count, _ in starts(workdir)] == [0, 3]


def test_optuna_is_named_where_it_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "optuna", None)
  with pytest.raises(UserError, match="pip install optuna"):
    search.load_optuna()
