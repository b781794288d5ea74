"""The benchmark's command line, its timer and its ratios."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import measure, ours, run, table, work


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--work=stf"], "'stf' is not one of sft, pretrain, reward"),
    (["--model=S,XL"], "'XL' is not one of S, M, 125m"),
    (["--steps=0"], "must be at least 1"),
    (["--work=reward", "--completions=1"], "--completions 2"),
    (["--peer", "--harness=nowhere"], "nowhere has no run.py"),
    (["--peer=jaxx"], "'jaxx' is not one of hf, torch, trl, tunix"),
  ],
)
def test_user_errors_are_one_line(argv, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    run.parse(argv)
  assert stopped.value.code == 2
  assert message in capsys.readouterr().err.splitlines()[-1]


def test_steps_are_timed_after_warm_up():
  waits = [0.05, 0.01, 0.02, 0.03]

  def step(index):
    time.sleep(waits[index])
    return jnp.zeros(())

  result = measure.time_steps(step, count=3, warmup=1)
  assert result["first_step_s"] >= 0.05
  assert result["step_s"]["n"] <= 3 and result["step_s"]["min"] >= 0.01
  assert result["step_s"]["median"] < 0.05


def test_a_ratio_is_taken_turn_by_turn(monkeypatch, capsys):
  """The host is slower in one round; the faster one does not change."""
  seconds = {"shared": iter([1.0, 1.0, 4.0, 2.0]), "rows": iter([3.0, 1, 12.0])}

  def ours(flags, name, model, layout, cache, **changes):
    del flags, name, model, cache, changes
    took = next(seconds[layout])
    return {
      "step_s": {"median": took},
      "first_step_s": took,
      "peak_memory_mib": 1.0,
    }

  monkeypatch.setattr(run, "_ours", ours)
  flags = run.parse(["--work=reward", "--layout=shared,rows", "--rounds=2"])
  run.compare(flags, "reward", "S")
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == 5
  assert {"first_step_warm_s", "peak_memory_warm_mib"} <= set(lines[0])
  assert lines[-1]["times_faster_shared"] == {"rows": 3.0}


def test_this_machines_ceilings_are_positive():
  result = measure.ceilings(seconds=0.2)
  assert set(result) == {"gflops", "copy_gb_per_s", "read_gb_per_s"}
  assert min(result.values()) > 0
  assert measure.peak_memory_mib() > 1
  assert jax.devices()[0].device_kind == measure.machine()["device"]


LINE = {
  "who": "ours",
  "work": "generate",
  "model": "125m",
  "step_s": {"median": 0.5, "min": 0.4, "max": 0.75, "n": 5},
  "rates": {"new_tokens": 32768.0},
  "gflops": 1500.0,
  "share_of_ceiling": 0.25,
  "decode": {"share_of_floor": 0.5},
  "peak_memory_mib": 2048.0,
  "first_step_s": 12.34,
  "ceilings": {"gflops": 6000.0, "copy_gb_per_s": 2500.0},
  "versions": {"jax": "1.2"},
  "machine": {"device": "a device"},
}


def test_lines_become_a_table(tmp_path, capsys):
  path = tmp_path / "lines.jsonl"
  sft = {k: x for k, x in LINE.items() if k != "decode"} | {"work": "sft"}
  others = {"who": "trl", "work": "sft"}
  path.write_text("\n".join(json.dumps(x) for x in (LINE, sft, others)))
  assert table.main([str(path)]) == 0
  message, _, *rows = capsys.readouterr().out.splitlines()
  assert message.startswith(
    "a device, jax 1.2: matmuls up to 6 TFLOP/s, copies"
  )
  assert len(rows) == 4
  assert rows[2] == (
    "| 125m | generate | 0.5 [0.4, 0.75] | 3.277e+04 new tokens/s | 1.5 | 25% "
    "| 50% | 2,048 MiB | 12.3 s |"
  )
  assert "| 25% |  | 2,048" in rows[3]


@pytest.mark.parametrize("text", [None, "", "{", '{"who": "ours"}'])
def test_a_table_of_something_else_is_refused(tmp_path, capsys, text):
  path = tmp_path / "lines.jsonl"
  if text is not None:
    path.write_text(text)
  assert table.main([str(path)]) == 2
  error, fix = capsys.readouterr().err.splitlines()
  assert str(path) in error and "fix" in fix


def test_the_command_line_names_every_model():
  assert set(run.MODELS) == set(work.MODELS) == set(work.SHAPES)


@pytest.mark.parametrize("name", run.WORKS)
def test_every_work_runs_at_tiny_size_in_bfloat16(name):
  step = ours.make(name, "tiny")
  for index in range(2):
    for x in jax.tree.leaves(jax.block_until_ready(step(index))):
      assert np.isfinite(np.asarray(x, np.float32)).all()


def test_the_gpu_script_refuses_unsupported_flags(tmp_path):
  def call(*argv, **env):
    return subprocess.run(
      ["benchmarks/gpu.sh", *argv],
      env={
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        **env,
      },
      capture_output=True,
      text=True,
    )

  for argv, message in (
    (["--huge"], "--huge is not known"),
    ([], "accelerator"),
  ):
    done = call(*argv)
    assert done.returncode == 2 and message in done.stderr.splitlines()[0]
  # Without time for anything there is no table, and that is no success.
  done = call("--tiny", LIMIT_S="1")
  assert done.returncode != 0 and "left out for want of time" in done.stderr
  (tmp_path / "lines.jsonl").write_text("kept")
  done = call("--tiny")
  assert done.returncode == 2 and "there already" in done.stderr
  assert (tmp_path / "lines.jsonl").read_text() == "kept"
