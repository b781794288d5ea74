"""Several processes as one run: their results, and how they end."""

import functools
import os
import signal
import socket
import time

import jax
import numpy as np
import pytest

from instructgpt_jax.distributed import preemption
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import stage_model
from tests.training import results, soak, toy

ENDED = "ended without reporting an error"


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def start(server, count, module, *flags, each=lambda i: (), address=""):
  """Starts the processes of one run; `each` gives flags of process i."""
  address = address or f"localhost:{free_port()}"
  return [
    server.start(
      module,
      *flags,
      f"--processes.coordinator={address}",
      f"--processes.count={count}",
      f"--processes.index={i}",
      "--processes.timeout=60",
      *each(i),
    )
    for i in range(count)
  ]


def finish(children):
  ends = [child.wait(400) for child in children]
  assert [done.status for done in ends] == [0] * len(ends), ends
  return ends


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_two_processes_train_as_one(axis, stages, tmp_path):
  """The metrics and parameters agree for each axis between processes."""
  path = tmp_path / "run"
  flags = [*stages.flags("pretrain"), f"--mesh.{axis}=2", f"--workdir={path}"]
  ends = finish(start(stages.server, 2, "experiments.pretrain", *flags))
  assert "training a tokenizer" in ends[0].err and not ends[1].err
  actual, expected = map(results.metrics, (path, stages["pretrain"]))
  assert [m["step"] for m in actual] == [m["step"] for m in expected]
  for a, b in zip(actual, expected, strict=True):
    assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
  stage, other = (
    stage_model.open_stage(str(p)) for p in (path, stages["pretrain"])
  )
  shapes = unbox(abstract_params(stage.network))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3),
    *(s.params(shapes) for s in (stage, other)),
  )


def test_two_processes_mix_and_pad_as_one(stages, tmp_path):
  """A step of policy_init has an odd number of rows and needs padding."""
  path = tmp_path / "run"
  flags = [*stages.flags("policy_init"), f"--workdir={path}"]
  finish(start(stages.server, 2, "experiments.policy_init", *flags))
  actual, expected = map(results.metrics, (path, stages["policy_init"]))
  for a, b in zip(actual, expected, strict=True):
    assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def pipeline(*more):
  def flags(stages):
    return [*soak.flags(stages.data), "--policy_init.epochs=4", *more]

  return flags


MIXED = ("--mesh.fsdp=2", "--mesh.tensor=2")  # two processes read the same rows
LONG = pytest.mark.soak


@pytest.mark.parametrize(
  "count, experiment, flags, stage",
  [
    (2, "ppo_ptx", lambda stages: stages.flags("ppo_ptx"), "."),
    (4, "pipeline", pipeline("--until=policy_init", *MIXED), "policy_init"),
    pytest.param(2, "pipeline", pipeline(), "ppo_ptx", marks=LONG),
    pytest.param(4, "pipeline", pipeline(*MIXED), "ppo", marks=LONG),
  ],
  ids=["ppo_ptx", "pipeline-of-4", "whole-of-2", "whole-of-4"],
)
def test_killed_process_ends_all_and_the_run_resumes(
  count, experiment, flags, stage, stages, tmp_path
):
  """The result equals an uninterrupted run's, bit for bit."""
  straight, path = tmp_path / "straight", tmp_path / "killed"
  run = functools.partial(
    start,
    stages.server,
    count,
    f"experiments.{experiment}",
    *flags(stages),
    address=f"localhost:{free_port()}",  # is part of the report
  )
  finish(run(f"--workdir={straight}"))
  children = run(f"--workdir={path}")
  victim = count - 1
  while results.lines(path / stage) < 5:
    assert all(child.running() for child in children)
    time.sleep(0.002)
  children[victim].kill()
  began = time.monotonic()
  for i, child in enumerate(children):
    done = child.wait()
    if i != victim:
      assert done.status == 1
      errors = [x for x in done.err.splitlines() if x.startswith("error")]
      assert errors == [f"error: process {victim} {ENDED}"], done.err
  assert time.monotonic() - began < 20
  assert not (path / "complete.json").exists()
  finish(run(f"--workdir={path}"))
  if experiment == "pipeline":
    soak.assert_same_pipeline(path, straight)
  else:
    results.assert_same_run(path, straight)


def test_sigterm_to_one_process_stops_all(stages, tmp_path):
  path = tmp_path / "run"
  flags = [
    *stages.flags("pretrain"),
    "--pretrain.steps=1000000",
    "--run.save_every=0",
    f"--workdir={path}",
  ]
  children = start(stages.server, 2, "experiments.pretrain", *flags)
  while results.lines(path) < 3:
    assert all(child.running() for child in children)
    time.sleep(0.002)
  os.kill(children[1].pid, signal.SIGTERM)
  for done in finish(children):
    assert done.err.splitlines()[-1] == preemption.STOPPED
  assert results.steps(path) == [results.metrics(path)[-1]["step"]]


def error_lines(children):
  """Returns the last error line of each process; none has a traceback."""
  lines = []
  for child in children:
    done = child.wait(60)
    assert done.status in (1, 2), done.err
    assert "Traceback" not in done.err and "@" not in done.err, done.err
    lines.append(
      [x for x in done.err.splitlines() if x.startswith("error")][-1]
    )
  return lines


def test_different_flags_are_named(stages, tmp_path):
  flags = [*stages.flags("pretrain"), f"--workdir={tmp_path / 'run'}"]
  children = start(
    stages.server, 3, "experiments.pretrain", *flags,
    each=lambda i: [f"--pretrain.batch_size={16 if i == 1 else 8}"],
  )  # fmt: skip
  message = "process 1 has --pretrain.batch_size=16, process 0 has 8"
  for line in error_lines(children):
    assert message in line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", [0, 2])
def test_missing_process_is_named(missing, stages, tmp_path):
  flags = [*stages.flags("pretrain"), f"--workdir={tmp_path / 'run'}"]
  address = f"localhost:{free_port()}"
  began = time.monotonic()
  children = [
    stages.server.start(
      "experiments.pretrain",
      *flags,
      f"--processes.coordinator={address}",
      "--processes.count=3",
      f"--processes.index={i}",
      "--processes.timeout=4",
    )
    for i in range(3)
    if i != missing
  ]
  message = "process 0 did not answer" if missing == 0 else (
    "process 2 of 3 did not connect within 4 s"
  )  # fmt: skip
  for line in error_lines(children):
    assert message in line
  assert time.monotonic() - began < 40
  assert not (tmp_path / "run").exists()


def test_error_of_one_process_is_reported_by_all(stages, tmp_path):
  """One process cannot write its shards of a checkpoint."""
  path = tmp_path / "run"
  flags = [*stages.flags("pretrain"), f"--workdir={path}", "--mesh.fsdp=2"]
  address = f"localhost:{free_port()}"
  children = [
    stages.server.start(
      "experiments.pretrain",
      *flags,
      f"--processes.coordinator={address}",
      "--processes.count=2",
      f"--processes.index={i}",
      file_size=700 if i else -1,
    )
    for i in range(2)
  ]
  lines = error_lines(children)
  assert "the disk is full" in lines[1]
  assert "process 1 failed" in lines[0] and "disk is full" in lines[0]


def test_invalid_coordinator_is_an_error(stages, tmp_path):
  flags = [*stages.flags("pretrain"), f"--workdir={tmp_path}", *toy.RUN]
  for address, message in (
    ("nowhere", "'nowhere' is not an address"),
    ("localhost:0", "is not an address"),
    ("auto", "no variables of Slurm"),
  ):
    done = stages.server.run(
      "experiments.pretrain",
      *flags,
      f"--processes.coordinator={address}",
      "--processes.count=2",
    )
    assert done.status == 2 and message in done.err
    assert "Traceback" not in done.err
