"""Tests of the profile of a step."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profile


def test_operations_are_counted_by_program_and_step():
  @jax.jit
  def multiplied(x):
    for _ in range(3):
      x = jnp.sin(x @ x)
    return x

  x = jnp.ones((64, 64))
  rows = profile.spent(lambda index: multiplied(x), steps=4)
  assert {row.program for row in rows} == {"multiplied"}
  assert all(row.milliseconds > 0 for row in rows)
  products = [row for row in rows if "dot" in row.kind or "ynn" in row.kind]
  assert sum(row.count for row in products) == 3


def test_a_table_has_the_longest_and_sums_up_the_others():
  rows = [
    profile.Spent("update", "dot", 12, 60.0),
    profile.Spent("update", "exp", 6, 30.0),
    profile.Spent("generate", "dot", 3, 8.0),
    profile.Spent("generate", "copy", 1, 2.0),
  ]
  first, *lines, last = profile.table(rows, top=2).splitlines()
  assert first.split() == ["ms", "times", "share", "program,", "operations"]
  assert [line.split() for line in lines] == [
    ["60.00", "12", "60.0%", "update", "dot"],
    ["30.00", "6", "30.0%", "update", "exp"],
    ["10.00", "4", "10.0%", "2", "others"],
  ]
  assert last.split() == ["100.00", "together"]


def test_the_command(capsys):
  assert profile.main(["--work=ppo", "--model=tiny", "--steps=1"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("ppo tiny: ")
  for program in ("generate", "score_rollout", "update"):
    assert f"  {program} " in out
  with pytest.raises(SystemExit) as stopped:
    profile.main(["--work=ppo", "--steps=0"])
  assert stopped.value.code == 2
  assert "must be at least 1" in capsys.readouterr().err
