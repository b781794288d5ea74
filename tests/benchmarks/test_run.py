"""The benchmark's command line, its timer and its ratios."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import measure, run


@pytest.mark.parametrize(
  "argv, said",
  [
    (["--work=stf"], "'stf' is none of sft, pretrain, reward"),
    (["--model=S,XL"], "'XL' is none of S, M"),
    (["--steps=0"], "start at 1"),
    (["--work=reward", "--completions=1"], "--completions at 2"),
    (["--peer", "--harness=nowhere"], "nowhere has no run.py"),
    (["--peer=jaxx"], "'jaxx' is none of hf, torch, trl, tunix"),
  ],
)
def test_mistakes_are_told_in_one_line(argv, said, capsys):
  with pytest.raises(SystemExit) as stopped:
    run.parse(argv)
  assert stopped.value.code == 2
  assert said in capsys.readouterr().err.splitlines()[-1]


def test_steps_are_timed_after_warm_up():
  waits = [0.05, 0.01, 0.02, 0.03]

  def step(index):
    time.sleep(waits[index])
    return jnp.zeros(())

  found = measure.time_steps(step, count=3, warmup=1)
  assert found["first_step_s"] >= 0.05
  assert found["step_s"]["n"] <= 3 and found["step_s"]["min"] >= 0.01
  assert found["step_s"]["median"] < 0.05


def test_a_ratio_is_taken_turn_by_turn(monkeypatch, capsys):
  """The machine is slower in one turn; who is faster stays the same."""
  seconds = {"shared": iter([1.0, 1.0, 4.0, 2.0]), "rows": iter([3.0, 1, 12.0])}

  def ours(flags, name, model, layout, cache, **changes):
    del flags, name, model, cache, changes
    took = next(seconds[layout])
    return {"step_s": {"median": took}, "first_step_s": took}

  monkeypatch.setattr(run, "_ours", ours)
  flags = run.parse(["--work=reward", "--layout=shared,rows", "--rounds=2"])
  run.compare(flags, "reward", "S")
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == 5 and "first_step_warm_s" in lines[0]
  assert lines[-1]["times_faster_shared"] == {"rows": 3.0}


def test_this_machines_ceilings_are_positive():
  found = measure.ceilings(seconds=0.2)
  assert found["gflops"] > 0 and found["copy_gb_per_s"] > 0
  assert measure.peak_memory_mib() > 1
  assert jax.devices()[0].device_kind == measure.machine()["device"]
