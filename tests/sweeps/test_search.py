"""Searches: every trial once, whatever happens to their workers."""

import contextlib
import os
import signal
import sqlite3
import sys

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runtime import files
from instructgpt_jax.sweeps import grid, plan, search
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
SPACE = grid.space(TEXT, counter.get_config())
WANTED = search.Search("random", 4, "score.mean", seed=3)


def make_job(name, overrides, **more):
  flags = {k.replace(".", "_"): v for k, v in {**overrides, **more}.items()}
  return job(name, **flags)


def run(root, wanted=WANTED, make=make_job, **more):
  root = str(root)
  plan.begin(root, {}, [])
  return search.run(root, wanted, SPACE, make, log=lambda text: None, **more)


def states(root):
  """State → how many trials, straight from the data base."""
  with contextlib.closing(sqlite3.connect(root / search.DATABASE)) as base:
    return dict(
      base.execute("SELECT state, COUNT(*) FROM trials GROUP BY state")
    )


def results(root):
  """Trial → the value that Optuna holds for it."""
  with contextlib.closing(sqlite3.connect(root / search.DATABASE)) as base:
    return dict(
      base.execute(
        "SELECT t.number, v.value FROM trials t"
        " JOIN trial_values v ON v.trial_id = t.trial_id"
      )
    )


@pytest.mark.parametrize("kind", search.KINDS)
def test_a_search_runs_so_many_trials_and_no_more(tmp_path, kind):
  wanted = search.Search(kind, 3, "score.mean", "minimize")
  outcome = run(tmp_path, wanted, workers=2)
  names = [f"trials/{n:03}" for n in range(3)]
  assert sorted(outcome.done) == names and not outcome.failed
  assert states(tmp_path) == {"COMPLETE": 3}
  for entry in plan.read(str(tmp_path))["jobs"]:
    folder = tmp_path / entry["name"]
    config = files.read_json(folder / "config.json")["config"]["section"]
    overrides = entry["overrides"]
    assert config["rate"] == overrides["section.rate"]
    assert config["size"] == overrides["section.size"] in (1, 2, 3)
    assert 0.1 <= config["rate"] <= 1
    score = summary(folder)["score"]["mean"]
    assert results(tmp_path)[int(entry["name"][-3:])] == score
  # Nothing is left to do; more trials go on from there.
  run(tmp_path, wanted)
  assert all(len(starts(tmp_path / name)) == 1 for name in names)
  run(tmp_path, search.Search(kind, 4, "score.mean", "minimize"))
  assert states(tmp_path) == {"COMPLETE": 4}


def test_a_random_search_is_the_same_whoever_runs_it(tmp_path):
  run(tmp_path, workers=3)
  found = [entry["overrides"] for entry in plan.read(str(tmp_path))["jobs"]]
  assert found == search.preview(WANTED, SPACE)
  assert len({str(values) for values in found}) == 4
  other = search.Search("random", 4, "score.mean", seed=4)
  assert search.preview(other, SPACE)[0] != found[0]


def test_a_failed_trial_is_told_and_does_not_stop_the_search(tmp_path):
  def make(name, overrides):
    return make_job(name, overrides, fail="error" if name[-1] == "1" else "")

  outcome = run(tmp_path, make=make)
  assert states(tmp_path) == {"COMPLETE": 3, "FAIL": 1}
  assert outcome.failed["trials/001"].endswith("RuntimeError: it broke")
  assert len(outcome.done) == 3
  # It is told by a later call as well, and not run again.
  assert run(tmp_path, make=make).failed == outcome.failed
  assert len(starts(tmp_path / "trials/001")) == 1


def test_an_infinite_objective_is_a_failure(tmp_path, monkeypatch):
  monkeypatch.setattr(search, "objective", lambda wanted, folder: float("nan"))
  outcome = run(tmp_path, search.Search("random", 2, "score.mean"))
  assert outcome.failed == dict.fromkeys(
    ("trials/000", "trials/001"), "score.mean is nan"
  )
  assert states(tmp_path) == {"FAIL": 2}


def test_a_missing_objective_names_what_there_is_and_loses_no_run(tmp_path):
  wrong = search.Search("random", 2, "score.meen")
  with pytest.raises(UserError) as error:
    run(tmp_path, wrong)
  assert error.value.field == "--objective"
  assert "did you mean 'score.mean'?" in str(error.value)
  for name in ("text", "score"):  # no numbers
    with pytest.raises(UserError, match="--objective"):
      run(tmp_path, search.Search("random", 2, name))
  run(tmp_path, search.Search("random", 2, "score.mean"))
  assert states(tmp_path) == {"COMPLETE": 2}
  assert len(plan.read(str(tmp_path))["jobs"]) == 2


def test_another_objective_is_refused_once_there_are_results(tmp_path):
  run(tmp_path, search.Search("random", 1, "score.mean"))
  with pytest.raises(UserError, match="was begun with --objective=score.mean"):
    run(tmp_path, search.Search("random", 2, "score.low"))


def test_a_trial_without_all_its_values_is_given_up(tmp_path):
  # As when a worker is killed while it asks for one.
  plan.begin(str(tmp_path), {}, [])
  trials = search.Trials(str(tmp_path), WANTED, SPACE, make_job)
  trials._study.ask()
  trials.close()
  outcome = run(tmp_path)
  assert states(tmp_path) == {"COMPLETE": 4, "FAIL": 1}
  assert len(outcome.done) == 4


def test_a_trial_belongs_to_one_worker_until_it_is_gone(tmp_path):
  plan.begin(str(tmp_path), {}, [])
  wanted = search.Search("random", 2, "score.mean")
  one = search.Trials(str(tmp_path), wanted, SPACE, make_job)
  two = search.Trials(str(tmp_path), wanted, SPACE, make_job)
  first, second = one.claim(), two.claim()
  assert (first.number, second.number) == (0, 1)
  assert one.claim() is None and two.claim() is None
  assert one.left == two.left == 2
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
  folder, *_ = [
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
  names = {entry["name"] for entry in plan.read(str(tmp_path))["jobs"]}
  assert names == {f"trials/{n:03}" for n in range(6)}
  for name in names:
    assert summary(tmp_path / name)["count"] == 5
    counts = [count for _, count, _ in starts(tmp_path / name)]
    assert counts == ([0, 3] if tmp_path / name == folder else [0])


def test_a_later_call_goes_on_with_a_killed_trial(tmp_path, start_sweep):
  worker = start_sweep(tmp_path, *argv(tmp_path, 2))
  folder = wait_for(lambda: at_the_gate(tmp_path))
  worker.send_signal(signal.SIGKILL)
  worker.communicate(timeout=300)
  ((child, _, _),) = starts(folder)
  gone(child)
  (tmp_path / "gate").touch()
  status = sweep.main(
    "--experiment=counter", f"--workdir={tmp_path}", *argv(tmp_path, 2)
  )
  assert status == 0
  assert states(tmp_path) == {"COMPLETE": 2}
  assert [count for _, count, _ in starts(folder)] == [0, 3]


def test_optuna_is_named_where_it_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "optuna", None)
  with pytest.raises(UserError, match="pip install optuna"):
    search.load_optuna()
