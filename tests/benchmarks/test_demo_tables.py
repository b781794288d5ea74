"""Tables of the demo's reports."""

import json

from benchmarks import demo_tables


def interval(mean):
  return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def report(seed):
  def model(number):
    return {
      "gold": interval(0.1 * number + 0.01 * seed),
      "win_rate": interval(0.5),
      "rm_score": interval(-0.3),
      "kl": None if number == 0 else interval(1.0),
      "lm_loss": interval(2.0),
      "greedy": {"gold": interval(0.7), "win_rate": interval(0.6)},
      "failures": {name: interval(0.25) for name in demo_tables.FAILURES},
      "tasks": {"reading": interval(0.125 * number)},
    }

  return {
    "seed": seed,
    "models": {name: model(i) for i, name in enumerate(demo_tables.MODELS)},
    "reward_model": {
      "accuracy": interval(0.6),
      "held_out_labelers": interval(0.5),
    },
    "tax": {"removed_by_ptx": 0.9},
    "seconds": {"ppo_ptx": 60.4, "evaluate": 2.0},
  }


def test_each_number_is_in_its_row_and_column(tmp_path, capsys):
  for seed in (0, 1):
    (tmp_path / str(seed)).mkdir()
    path = tmp_path / str(seed) / "report.json"
    path.write_text(json.dumps(report(seed)))
  folders = [str(tmp_path / str(seed)) for seed in (0, 1)]
  assert demo_tables.main(folders) == 0
  printed = capsys.readouterr().out
  for line in (
    "|  | seed 0 | seed 1 |",
    "| SFT | 0.200 [0.100, 0.300] | 0.210 [0.110, 0.310] |",
    "| base | – | – |",
    "| base | -0.30 [-0.40, -0.20] | -0.30 [-0.40, -0.20] |",
    "| seed 1: reading | 0.0 | 12.5 | 25.0 | 37.5 | 50.0 | 62.5 |",
    "| seed 0: fails instruction | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 |",
    "| removed | 90.0% | 90.0% |",
    "| ppo ptx | 60 | 60 |",
    "| all | 62 | 62 |",
  ):
    assert line in printed.splitlines(), line


def test_a_run_without_report_is_named(tmp_path, capsys):
  assert demo_tables.main([str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert str(tmp_path / "report.json") in error and "fix:" in error
