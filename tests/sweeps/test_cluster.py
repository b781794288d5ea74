"""Jobs by submitit: its own local executor, and a Slurm of four scripts."""

import os
import shutil
import signal
import stat
import sys
import threading

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import cluster, execute, records
from tests.sweeps.fake import sweep
from tests.sweeps.runs import (
  at_the_gate,
  gone,
  job,
  starts,
  summary,
  wait_for,
)

JOBS = [
  job("a/b", "c"),
  job("c", steps=3),
  job("d", fail="error"),
  job("e", "d"),
]


def run(root, launcher, jobs=JOBS, **more):
  return execute.run_jobs(
    jobs, str(root), workers=0, launcher=launcher, log=lambda text: None, **more
  )


def check(outcome, root):
  """Checks that JOBS have their expected results."""
  assert sorted(outcome.done) == ["a/b", "c"]
  assert outcome.skipped == {"e": "d"}
  assert outcome.failed["d"].endswith("RuntimeError: it broke")
  assert summary(root / "c")["count"] == 3
  assert set(outcome.seconds) == {"a/b", "c", "d"}
  assert all(s > 0 for s in outcome.seconds.values())
  assert "count 3" in (root / "logs" / "c.txt").read_text()


def test_submitits_executor_runs_jobs(tmp_path):
  check(run(tmp_path, "submitit-local"), tmp_path)
  outcome = run(tmp_path, "submitit-local")
  assert len(starts(tmp_path / "c")) == 1 and len(starts(tmp_path / "d")) == 2
  assert sorted(outcome.done) == ["a/b", "c"]


def test_a_search_by_submitit(tmp_path):
  status = sweep.main(
    "--experiment=counter", f"--workdir={tmp_path}", "--search=random",
    "--trials=2", "--objective=score.mean", "--sweep=section.rate=lin:1:2",
    "--launcher=submitit-local",
  )  # fmt: skip
  assert status == 0
  for number in range(2):
    assert len(starts(tmp_path / f"trials/{number:03}")) == 1


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_stopped_sweep_cancels_its_submitted_jobs(
  interrupts, tmp_path, start_sweep
):
  """A shell in the background ignores ^C; the sweep must not."""
  runner = start_sweep(
    tmp_path, "--launcher=submitit-local", "--sweep=seed=0", "--steps=5",
    f"--gate={tmp_path}/gate", interrupts=interrupts,
  )  # fmt: skip
  workdir = wait_for(lambda: at_the_gate(tmp_path))
  ((child, _, _),) = starts(workdir)
  runner.terminate()
  runner.communicate(timeout=120)
  assert runner.returncode == 0
  gone(child)


def test_a_second_copy_waits_and_finds_the_job_done(tmp_path):
  # As when a runner was killed and its successor has submitted the job again.
  task = cluster.ClusterTask(job("a"), str(tmp_path))
  lock = records.acquire(records.lock_path(str(tmp_path), "runs/a"))
  second = threading.Thread(target=task)
  second.start()
  second.join(0.3)
  assert second.is_alive()
  files.mark_complete(tmp_path / "a", {})
  os.close(lock)
  second.join(60)
  assert not second.is_alive() and not starts(tmp_path / "a")


SLURM = cluster.Slurm(
  partition="gpu",
  minutes=90,
  gpus=2,
  cpus=8,
  memory_gb=1.5,
  extra={"account": "abc"},
)


def test_the_batch_script_requests_the_resources_of_the_flags(tmp_path):
  text = cluster.batch_script(str(tmp_path), SLURM, "trials/003")
  lines = text.splitlines()
  assert lines[0] == "#!/bin/bash"
  for option in (
    "partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=8",
    "mem=1536MB", "account=abc", "job-name=trials.003",
  ):  # fmt: skip
    assert f"#SBATCH --{option}" in lines
  assert any(
    line.startswith("srun ") and "submitit.core._submit" in line
    for line in lines
  )
  assert not list(tmp_path.iterdir())
  plain = cluster.batch_script(str(tmp_path), cluster.Slurm(), "a")
  assert "partition" not in plain and "gpus" not in plain and "mem" not in plain


SCRIPTS = {
  # Runs the script beside us, as Slurm would elsewhere.
  "sbatch": """
    cp "$1" "$HERE/last.sh"
    id=$$
    export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
    export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
    bash "$1" >/dev/null 2>&1 &
    echo "Submitted batch job $id" """,
  "srun": """
    while [ "${1#-}" != "$1" ]; do
      case "$1" in --output|--error) shift;; esac
      shift
    done
    exec "$@" """,
  "sacct": "echo 'JobID|State|NodeList'",
  "scancel": 'echo "$@" >> "$HERE/cancelled"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """Returns a workdir with fake Slurm commands that run jobs locally."""
  workdir = tmp_path / "slurm"
  workdir.mkdir()
  for name, text in SCRIPTS.items():
    path = workdir / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("PATH", f"{workdir}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("HERE", str(workdir))
  return workdir


def test_jobs_go_through_sbatch(tmp_path, slurm):
  root = tmp_path / "root"
  check(run(root, "slurm", slurm=SLURM), root)
  script = (slurm / "last.sh").read_text()
  assert "#SBATCH --partition=gpu" in script
  assert "#SBATCH --job-name=a.b" in script


def test_a_stopped_sweep_cancels_its_slurm_jobs(tmp_path, slurm):
  place = cluster.SubmititLauncher(str(tmp_path / "root"), 0, "slurm", SLURM)
  place.start(job("a"), -1)
  place.stop()
  (number,) = (slurm / "cancelled").read_text().split()
  assert number.isdigit() and place.running == []
  wait_for(lambda: files.read_complete(tmp_path / "root" / "a"))


def test_submitit_is_named_where_it_is_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "submitit", None)
  with pytest.raises(UserError, match="pip install submitit .extra 'sweeps'"):
    run(tmp_path, "submitit-local")


def test_a_missing_slurm_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, "which", lambda name: None)
  with pytest.raises(UserError) as error:
    run(tmp_path, "slurm")
  assert error.value.code == "no_slurm"
