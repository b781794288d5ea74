"""Failures, second calls, signals and locks of a sweep's runner."""

import os
import signal

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import execute, processes, records
from tests.sweeps.runs import (
  alive,
  at_the_gate,
  cores,
  gone,
  job,
  starts,
  summary,
  wait_for,
)


def run(jobs, root, **more):
  lines = []
  outcome = execute.run_jobs(jobs, str(root), log=lines.append, **more)
  return outcome, lines


def test_a_failure_stops_only_dependent_jobs(tmp_path):
  outcome, messages = run(
    [
      job("far", "near"),
      job("near", "broken"),
      job("broken", fail="error", steps=20),
      job("silent", fail="exit"),
      job("good"),
      job("after/good", "good", init_from=str(tmp_path / "good")),
    ],
    tmp_path,
  )
  assert outcome.done == ["good", "after/good"]
  assert outcome.skipped == {"near": "broken", "far": "broken"}
  assert set(outcome.failed) == {"broken", "silent"}
  how, *lines = outcome.failed["broken"].splitlines()
  assert how == "ended with status 1, not complete"
  assert len(lines) == 10 and lines[-1] == "RuntimeError: it broke"
  assert outcome.failed["silent"].startswith("ended with status 0, not comp")
  assert not (tmp_path / "near").exists()
  assert any("broken: failed after" in line for line in messages)
  assert set(outcome.seconds) == {"broken", "silent", "good", "after/good"}
  assert all(0 < s < 60 for s in outcome.seconds.values())


def test_a_second_call_runs_only_missing_jobs(tmp_path):
  late = tmp_path / "late"
  jobs = [job("a"), job("b", init_from=str(late)), job("c", "b")]
  outcome, _ = run(jobs, tmp_path)
  assert list(outcome.failed) == ["b"] and outcome.skipped == {"c": "b"}
  late.mkdir()
  files.mark_complete(late, {})
  outcome, _ = run(jobs, tmp_path)
  assert outcome.done == ["a", "b", "c"] and not outcome.failed
  assert len(starts(tmp_path / "a")) == len(starts(tmp_path / "c")) == 1
  # The log has both calls, the failure's text only the last one.
  log = (tmp_path / "logs" / "b.txt").read_text()
  assert log.count("$ python -m") == 2


def test_wrong_flags_can_be_fixed_in_the_same_directory(tmp_path):
  outcome, _ = run([job("a", fail="mistake")], tmp_path)
  assert "fix: give none" in outcome.failed["a"]
  outcome, _ = run([job("a", fail="")], tmp_path)
  assert outcome.done == ["a"]


def test_a_job_run_with_other_settings_is_refused(tmp_path):
  run([job("a", section_rate=0.5, steps=1)], tmp_path)
  with pytest.raises(UserError, match=r"--section.rate=0.5, not 0.25"):
    run([job("a", section_rate=0.25)], tmp_path)
  outcome, _ = run([job("a", section_rate=0.5)], tmp_path)
  assert outcome.done == ["a"]


def test_one_runner_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(execute, "_LOCK_TIMEOUT", 0.1)
  lock = records.acquire(tmp_path / ".lock")
  with pytest.raises(UserError) as error:
    run([job("a")], tmp_path)
  assert error.value.code == "sweep_running"
  assert not (tmp_path / "a").exists()
  os.close(lock)
  assert run([job("a")], tmp_path)[0].done == ["a"]


@pytest.mark.parametrize(
  "number, status",
  [
    (signal.SIGTERM, 0),
    (signal.SIGINT, 130),
    (signal.SIGKILL, -signal.SIGKILL),
  ],
)
def test_no_process_survives_and_a_second_call_resumes(
  tmp_path, start_sweep, number, status
):
  argv = ("--steps=5", "--sweep=seed=0", f"--gate={tmp_path}/gate")
  runner = start_sweep(tmp_path, *argv)
  workdir = wait_for(lambda: at_the_gate(tmp_path))
  ((child, _, _),) = starts(workdir)
  assert alive(child)
  runner.send_signal(number)
  _, error = runner.communicate(timeout=300)
  assert runner.returncode == status
  assert "Traceback" not in error
  gone(child)
  assert files.read_complete(workdir) is None
  before = records.read_seconds(str(tmp_path)).get("seed=0", 0)
  if number != signal.SIGKILL:
    assert before > 0

  (tmp_path / "gate").touch()
  again = start_sweep(tmp_path, *argv)
  _, error = again.communicate(timeout=300)
  assert again.returncode == 0, error
  assert summary(workdir)["count"] == 5
  assert [count for _, count, _ in starts(workdir)] == [0, 3]
  assert records.read_seconds(str(tmp_path))["seed=0"] > before


def killed_after(root, one, seconds):
  """Writes the records of a runner that is killed `seconds` after a start."""
  workdir = root / one.name
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "metrics.jsonl").touch()
  records.begin_span(str(root), one)
  (path,) = (root / records.SPANS).rglob("*.began")
  written = max(p.stat().st_mtime for p in workdir.iterdir())
  path.write_text(repr(written - seconds))


def test_the_time_before_a_kill_is_counted(tmp_path):
  one = job("seed=0", seed=0)
  killed_after(tmp_path, one, 50.0)
  outcome = execute.run_jobs([one], str(tmp_path))
  assert outcome.done == [one.name]
  assert 50.0 < outcome.seconds[one.name] < 80.0
  again = execute.run_jobs([one], str(tmp_path))
  assert again.seconds == outcome.seconds


def test_a_run_that_ended_as_its_runner_was_killed_has_its_time(tmp_path):
  one = job("seed=0", seed=0)
  (tmp_path / one.name).mkdir()
  files.mark_complete(tmp_path / one.name, {"score": 1})
  killed_after(tmp_path, one, 7.0)
  assert execute.run_jobs([one], str(tmp_path)).seconds[one.name] == 7.0
  assert execute.run_jobs([one], str(tmp_path)).seconds[one.name] == 7.0


def test_a_run_stopped_by_a_signal_to_it_alone_resumes(tmp_path, start_sweep):
  argv = ("--steps=5", "--sweep=seed=0", f"--gate={tmp_path}/gate")
  runner = start_sweep(tmp_path, *argv)
  workdir = wait_for(lambda: at_the_gate(tmp_path))
  ((child, _, _),) = starts(workdir)
  os.kill(child, signal.SIGTERM)
  gone(child)
  wait_for(lambda: len(starts(workdir)) == 2)
  (tmp_path / "gate").touch()
  _, error = runner.communicate(timeout=300)
  assert runner.returncode == 0, error
  assert summary(workdir)["count"] == 5
  assert "1/1" in error and "fail" not in error


def test_a_process_that_does_not_end_is_killed(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "_GRACE", 0.2)
  script = "import signal, time; signal.signal(15, signal.SIG_IGN); "
  script += "print('ready', flush=True); time.sleep(60)"
  with open(tmp_path / "log", "wb") as log:
    process = processes.start_process(
      [processes.sys.executable, "-c", script], log
    )
  wait_for(lambda: (tmp_path / "log").read_text())
  processes.terminate(process)
  processes.wait_or_kill(process)
  assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(len(cores()) < 2, reason="there is one core only")
def test_workers_have_separate_cores(tmp_path):
  slow = dict(steps=10, wait=0.05)
  jobs = [job("a", **slow), job("b", **slow)]
  run(jobs, tmp_path, workers=2)
  ((_, _, first),), ((_, _, second),) = (
    starts(tmp_path / name) for name in "ab"
  )
  assert first and second and not first & second
  assert first | second == set(cores())
  # A job that all others need has all cores, and so has a single worker.
  run([job("c"), job("d", "c"), job("e", "c")], tmp_path, workers=2)
  run([job("f")], tmp_path)
  for name in "cf":
    ((_, _, alone),) = starts(tmp_path / name)
    assert alone == set(cores())


def test_cores_are_split_evenly(monkeypatch):
  monkeypatch.setattr(
    processes.os, "sched_getaffinity", lambda pid: {7, 1, 2, 3, 5}
  )
  assert processes.split_cores(2) == [[1, 2], [3, 5, 7]]
  assert processes.split_cores(5) == [[1], [2], [3], [5], [7]]
  assert processes.split_cores(1) == [[]]
  assert processes.split_cores(6) == [[]] * 6


def test_no_more_jobs_run_at_once_than_workers(tmp_path):
  # Each counts slowly; two of them overlap, the third waits for one.
  jobs = [job(name, steps=10, wait=0.05) for name in "abc"]
  counts = []

  class Counted(processes.LocalLauncher):
    def start(self, job, lock, alone=False):
      super().start(job, lock, alone)
      counts.append(len(self.running))

  place = Counted(str(tmp_path), 2)
  lock = records.acquire(tmp_path / "lock")
  outcome = execute._run_loop(jobs, str(tmp_path), place, lock, "sweep", print)
  os.close(lock)
  assert sorted(outcome.done) == ["a", "b", "c"]
  assert max(counts) == 2


def test_an_unknown_launcher_is_named(tmp_path):
  with pytest.raises(UserError, match="no launcher 'cloud'"):
    run([job("a")], tmp_path, launcher="cloud")
