"""Metrics as JSON lines without repeated steps, and as TensorBoard files."""

import json
import pathlib

import jax.numpy as jnp
import pytest

from instructgpt_jax import configs
from instructgpt_jax.runs import metrics

SILENT = configs.Run(tensorboard=False)


def _write(workdir, steps, **options):
  with metrics.MetricWriter(workdir, SILENT, **options) as writer:
    for step in steps:
      writer.write(step, {"loss": step / 4})


def test_lines(tmp_path):
  with metrics.MetricWriter(tmp_path, SILENT) as writer:
    writer.write(1, {"loss": jnp.float32(0.5), "tokens": 3})
    # They are readable during the run.
    assert metrics.read_metrics(tmp_path) == [
      {"step": 1, "loss": 0.5, "tokens": 3}
    ]


def test_nonfinite_values_are_strings(tmp_path):
  with metrics.MetricWriter(tmp_path, SILENT) as writer:
    writer.write(1, {"a": float("nan"), "b": jnp.inf, "c": -jnp.inf})
  line = (tmp_path / "metrics.jsonl").read_text()
  row = json.loads(line, parse_constant=pytest.fail)
  assert row == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}


def test_resuming_deletes_later_steps(tmp_path):
  _write(tmp_path, [10, 20, 30, 40])
  _write(tmp_path, [30, 40, 50], resume_step=20)
  steps = [row["step"] for row in metrics.read_metrics(tmp_path)]
  assert steps == [10, 20, 30, 40, 50]


def test_starting_from_scratch_deletes_all_steps(tmp_path):
  _write(tmp_path, [10, 20])
  _write(tmp_path, [10])
  assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [10]


@pytest.mark.parametrize("tail", ['{"step": 30, "lo', '{"step": 30}', "\x00"])
def test_truncated_line_is_deleted(tmp_path, tail):
  _write(tmp_path, [10, 20])
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(tail)
  _write(tmp_path, [30], resume_step=25)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_resuming_at_the_last_step_rewrites_nothing(tmp_path):
  _write(tmp_path, [10, 20])
  inode = (tmp_path / "metrics.jsonl").stat().st_ino
  _write(tmp_path, [], resume_step=20)
  assert (tmp_path / "metrics.jsonl").stat().st_ino == inode


def test_tensorboard_files_contain_the_values(tmp_path):
  with metrics.MetricWriter(tmp_path, configs.Run()) as writer:
    writer.write(1, {"train/some_loss": 0.5, "bad": float("nan")})
  (path,) = pathlib.Path(tmp_path, "tensorboard").iterdir()
  data = path.read_bytes()
  assert b"train/some_loss" in data
  assert b"bad" not in data


def test_no_tensorboard_when_switched_off(tmp_path):
  _write(tmp_path, [1])
  assert not (tmp_path / "tensorboard").exists()
