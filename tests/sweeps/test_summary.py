"""Tests of means over the seeds of a sweep, and of its picture."""

import csv
import math

import pytest

from instructgpt_jax import statistics
from instructgpt_jax.sweeps import summary

SWEPT = ["ppo.kl_coef", "seed"]
ROWS = [
  {
    "run": f"kl_coef={coef},seed={seed}",
    "ppo.kl_coef": coef,
    "seed": seed,
    "seconds": 1.0,
    "reward.mean": coef + seed / 10,
    "reward.low": 0.0,
    "name": "text",
  }
  for coef in (0.01, 0.1, 1.0)
  for seed in (0, 1, 2)
]


def test_runs_are_averaged_over_seeds_with_intervals():
  groups = summary.group_by_settings(ROWS, SWEPT)
  assert [g.settings for g in groups] == [
    {"ppo.kl_coef": coef} for coef in (0.01, 0.1, 1.0)
  ]
  # Student's interval of 0, 0.1 and 0.2, which has 2 degrees of freedom.
  half = statistics.student_t(2) * 0.1 / math.sqrt(3)
  for group in groups:
    (name,) = group.means
    mean = group.means[name]
    expected = group.settings["ppo.kl_coef"] + 0.1
    assert (name, mean.units) == ("reward.mean", 3)
    assert mean.mean == pytest.approx(expected)
    assert mean.high - mean.mean == pytest.approx(half)
    assert mean.mean - mean.low == pytest.approx(half)


def test_means_are_written_as_csv(tmp_path):
  groups = summary.group_by_settings(ROWS, SWEPT)
  with open(summary.write_means(str(tmp_path), groups), newline="") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == [
    "ppo.kl_coef", "runs", "reward.mean", "reward.mean.low", "reward.mean.high",
  ]  # fmt: skip
  assert [row["runs"] for row in rows] == ["3"] * 3


def test_a_single_run_has_a_mean_without_an_interval():
  (group,) = summary.group_by_settings(ROWS[:1], SWEPT)
  assert math.isnan(group.means["reward.mean"].low)
  (row,) = summary.text_rows([group], ["reward.mean"])
  assert row == {"ppo.kl_coef": 0.01, "reward.mean": "0.01"}


@pytest.mark.parametrize(
  "swept, expected", [(SWEPT, True), (["ppo.kl_coef"], False)]
)
def test_means_over_seeds_need_several_seeds(swept, expected):
  assert summary.has_seeds(ROWS, swept) == expected
  assert not summary.has_seeds(ROWS[::3], swept)


def test_constant_metrics_are_not_shown_and_the_objective_comes_first():
  rows = [
    {"run": str(i), "x": i, "seconds": 1.0, "a": i, "b": 100 + i, "same": 1.0}
    for i in range(3)
  ]
  groups = summary.group_by_settings(rows, ["x"])
  assert summary.choose_metrics(groups) == ["a", "b"]
  assert summary.choose_metrics(groups, ["b"]) == ["b", "a"]


@pytest.mark.parametrize(
  "rows, swept",
  [
    (ROWS, SWEPT),
    ([{**row, "ppo.kl_coef": f"{row['ppo.kl_coef']}x"} for row in ROWS], SWEPT),
    (ROWS, ["seed"]),
    ([{**row, "size": i} for i, row in enumerate(ROWS)], [*SWEPT, "size"]),
  ],
  ids=["numbers", "texts", "seeds", "two fields"],
)
def test_a_picture_is_written_for_any_kind_of_field(tmp_path, rows, swept):
  groups = summary.group_by_settings(rows, swept)
  path = summary.draw(str(tmp_path), groups, summary.choose_metrics(groups))
  assert path == str(tmp_path / "sweep.png")
  assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_picture_without_results(tmp_path):
  assert summary.draw(str(tmp_path), [], []) is None
  assert not list(tmp_path.iterdir())
