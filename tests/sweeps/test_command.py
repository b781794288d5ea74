"""Tests of the command line of a sweep and of its results."""

import csv
import json
import subprocess
import sys

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.sweeps import collect, sweep_file
from tests import printed
from tests.sweeps.fake import sweep
from tests.sweeps.runs import ROOT, starts


def main(workdir, *argv):
  return sweep.main("--experiment=counter", f"--workdir={workdir}", *argv)


def test_a_dry_run_prints_commands_that_work_by_hand(tmp_path, capsys):
  root = tmp_path / "my sweep"
  argv = ("--preset=large", "--sweep=section.kind=a b,c", "--section.rate=0.5")
  assert main(root, *argv, "--dry_run") == 0
  out, err = capsys.readouterr()
  assert not root.exists() and not err
  assert len(out.splitlines()) == 2
  for line in out.splitlines():
    assert line.startswith("python -m tests.sweeps.fake.counter ")
    subprocess.run(
      line.replace("python", sys.executable, 1),
      shell=True, cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
  # The sweep finds nothing left to do.
  assert main(root, *argv) == 0
  assert capsys.readouterr().out.splitlines()[-1].endswith("results.csv")
  rows = collect.read_rows(str(root))
  assert [row["section.kind"] for row in rows] == ["a b", "c"]
  assert all(row["count"] == 3 and row["seconds"] is None for row in rows)
  assert all(len(starts(root / row["run"])) == 1 for row in rows)


def test_rows_have_the_swept_fields_and_the_summary(tmp_path, capsys):
  assert main(tmp_path, "--sweep=section.rate=0.1,0.3;seed=0,1") == 0
  rows = collect.read_rows(str(tmp_path))
  assert [row["run"] for row in rows] == [
    "rate=0.1,seed=0", "rate=0.1,seed=1", "rate=0.3,seed=0", "rate=0.3,seed=1",
  ]  # fmt: skip
  assert list(rows[0]) == [
    "run", "section.rate", "seed", "seconds", "count", "score.mean",
    "score.low", "text",
  ]  # fmt: skip
  assert rows[0]["score.mean"] == pytest.approx(-0.04)
  assert rows[2]["score.mean"] == 0 and rows[0]["seconds"] > 0
  with open(tmp_path / "results.csv", newline="") as file:
    lines = list(csv.DictReader(file))
  assert [{k: str(v) for k, v in row.items()} for row in rows] == lines
  out = capsys.readouterr().out.splitlines()
  assert out[0].split() == [
    "section.rate", "seed", "seconds", "count", "score.mean", "score.low",
    "text",
  ]  # fmt: skip
  assert len({len(line) for line in out[:5]}) == 1
  # Means over both seeds, and a picture.
  assert out[6].startswith("means over seeds")
  assert out[7].split()[0] == "section.rate" and len(out[7:10]) == 3
  assert (tmp_path / "means.csv").exists()
  assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_has_as_many_columns_as_fit():
  rows = [{"run": "x", "a": 0.123456, "seconds": 1.0, "long": "y" * 50, "b": 2}]
  lines = collect.format_table(rows, ["b"], width=24).splitlines()
  assert lines == ["     a  b  seconds", "0.1235  2        1"]
  assert collect.format_table([]) == "no run is complete"


def test_failed_and_skipped_runs_are_reported_with_status_1(tmp_path, capsys):
  assert main(tmp_path, "--sweep=fail=error,exit,no") == 1
  out, err = capsys.readouterr()
  assert f"failed: fail=error, {tmp_path}/logs/fail=error.txt" in err
  assert "  RuntimeError: it broke" in err and "failed: fail=exit" in err
  assert "no" in out and "results: " in out
  assert len(collect.read_rows(str(tmp_path))) == 1


def test_a_grid_can_be_extended_in_its_directory(tmp_path):
  assert main(tmp_path, "--sweep=seed=0") == 0
  assert main(tmp_path, "--sweep=seed=0..2") == 0
  assert [row["seed"] for row in collect.read_rows(str(tmp_path))] == [0, 1, 2]
  assert len(starts(tmp_path / "seed=0")) == 1


@pytest.mark.parametrize(
  "argv, field, values",
  [
    (("--steps=2", "--sweep=seed=1"), "steps", ("1", "2")),
    (("--preset=large", "--sweep=seed=1"), "preset", ("small", "large")),
    (
      ("--sweep=seed=int:0:9", "--search=random", "--objective=count"),
      "kind",
      ("grid", "random"),
    ),
  ],
)
def test_another_sweep_is_refused(tmp_path, monkeypatch, argv, field, values):
  assert main(tmp_path, "--sweep=seed=0") == 0
  before = (tmp_path / "sweep.json").read_text()
  errors = printed.record_errors(monkeypatch)
  assert main(tmp_path, *argv) == 2
  (error,) = errors
  assert (error.code, error.field) == ("other_sweep", field)
  assert all(value in error.problem for value in values)
  assert "--workdir" in error.fix
  assert (tmp_path / "sweep.json").read_text() == before


def test_the_error_names_the_presets_value_of_a_flag(tmp_path, monkeypatch):
  assert main(tmp_path, "--sweep=seed=0", "--steps=2") == 0
  errors = printed.record_errors(monkeypatch)
  assert main(tmp_path, "--sweep=seed=1") == 2  # 1 is the preset's own
  assert errors[0].code == "other_sweep" and errors[0].field == "steps"
  assert "steps=2" in errors[0].problem and "not 1" in errors[0].problem
  with pytest.raises(UserError) as error:
    sweep_file.write_sweep(
      str(tmp_path), {"flags": {"preset": "small", "steps": 3}}, []
    )
  assert error.value.code == "other_sweep" and error.value.field == "steps"


def test_flags_that_a_run_may_change_may_differ_between_calls(tmp_path):
  for keep in (1, 5):
    head = {"flags": {"run.keep": keep, "seed": 3}, "search_seed": 1}
    sweep_file.write_sweep(str(tmp_path), head, [])
  config = sweep_file.read_sweep(str(tmp_path))
  assert config["flags"]["run.keep"] == 5
  sweep_file.write_sweep(str(tmp_path), {"flags": {"seed": 3}}, [])
  with pytest.raises(UserError) as error:
    sweep_file.write_sweep(str(tmp_path), {"flags": {"seed": 4}}, [])
  assert error.value.field == "seed"


def test_the_seed_of_a_search_is_recorded(tmp_path):
  sweep_file.write_sweep(
    str(tmp_path), {"kind": "random"}, []
  )  # by an earlier version
  for _ in range(2):
    sweep_file.write_sweep(
      str(tmp_path), {"kind": "random", "search_seed": 1}, []
    )
  with pytest.raises(UserError) as error:
    sweep_file.write_sweep(
      str(tmp_path), {"kind": "random", "search_seed": 2}, []
    )
  assert error.value.field == "search_seed"


def test_a_search_with_another_seed_is_refused(tmp_path, monkeypatch):
  errors = printed.record_errors(monkeypatch)
  argv = ("--sweep=seed=int:0:9", "--search=random", "--objective=count")
  assert main(tmp_path, *argv, "--trials=1", "--search_seed=3") == 0
  assert main(tmp_path, *argv, "--trials=2") == 2
  (error,) = errors
  assert (error.code, error.field) == ("other_sweep", "search_seed")
  assert main(tmp_path, *argv, "--trials=2", "--search_seed=3") == 0


def test_settings_come_from_the_preset_and_the_flags(tmp_path):
  (tmp_path / "flags").write_text("--section.size=4\n")
  status = main(
    tmp_path / "run", "--sweep=rates", "--preset", "large", "--section.loud",
    f"--flagfile={tmp_path / 'flags'}", "--seed=7",
  )  # fmt: skip
  assert status == 0
  config = json.loads((tmp_path / "run/rate=0.2/config.json").read_text())
  assert config["config"]["steps"] == 3 and config["config"]["seed"] == 7
  assert config["config"]["section"] == {
    "rate": 0.2, "size": 4, "kind": "plain", "loud": True,
  }  # fmt: skip


@pytest.mark.parametrize(
  "argv, field, code",
  [
    ((), "--sweep", "missing_sweep"),
    (("--sweep=rate",), "--sweep", "unknown_sweep"),
    (("--sweep=seed=x",), "--sweep", "wrong_type"),
    (("--sweep=seeds", "--stepz=1"), "--stepz", "unknown_flag"),
    (("--sweep=seeds", "--preset=huge"), "--preset", "unknown_preset"),
    (("--sweep=seeds", "--jobs=0"), "--jobs", "not_positive"),
    (("--sweep=seeds", "--jobs=two"), None, "bad_flag"),
    (("--sweep=seeds", "--launcher=cloud"), None, "bad_flag"),
    (("--sweep=seeds", "--search=tpe"), "--objective", "missing_objective"),
    (
      ("--sweep=seeds", "--objective=x"),
      "--objective",
      "objective_without_search",
    ),
    (("--sweep=seeds", "--slurm.extra=x"), None, "bad_flag"),
    (("--sweep=seeds", "--shared.seed=1"), "--shared.seed", "no_shared_stages"),
    (("--sweep=seeds", "--experiment=pppo"), "--experiment",
     "unknown_experiment"),
  ],
)  # fmt: skip
def test_user_errors_have_status_2_and_start_nothing(
  tmp_path, capsys, monkeypatch, argv, field, code
):
  errors = printed.record_errors(monkeypatch)
  workdir = tmp_path / "run"
  assert main(workdir, *argv) == 2
  text = capsys.readouterr().err
  assert text.startswith("error: ")
  assert "fix: " in text and len(text.splitlines()) <= 3
  (error,) = errors
  assert (error.field, error.code) == (field, code) and error.fix
  assert not workdir.exists()


def test_help_is_complete(capsys):
  with pytest.raises(SystemExit) as end:
    sweep.main("--help")
  assert end.value.code == 0
  out = capsys.readouterr().out
  for word in ("Doc.", "--sweep", "--jobs", "--slurm.partition", "--shared."):
    assert word in out


def test_help_and_a_dry_run_import_no_jax(tmp_path):
  script = """
import sys
from experiments import sweep
from instructgpt_jax.sweeps import command
status = command.main(sys.argv[1:], sweep.load)
print(status, sorted({"jax", "optuna", "submitit"} & set(sys.modules)))
"""
  argv = ("--experiment=ppo", "--preset=world", "--sweep=ppo.kl_coef=1",
          f"--workdir={tmp_path}", "--dry_run")  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-c", script, *argv],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout.splitlines()[-1] == "0 []"


def test_a_directory_without_a_sweep_has_no_rows(tmp_path):
  with pytest.raises(UserError) as error:
    collect.read_rows(str(tmp_path))
  assert error.value.code == "no_file"
  files.write_json_atomic(tmp_path / "sweep.json", [1])
  with pytest.raises(UserError) as error:
    collect.read_rows(str(tmp_path))
  assert error.value.code == "not_a_sweep"
  assert error.value.file == str(tmp_path / "sweep.json")


def test_inputs_of_a_sweep_may_not_change_between_calls(tmp_path):
  root, key = str(tmp_path), "data.demonstrations=d.jsonl"
  sweep_file.write_sweep(root, {}, [])  # by an earlier version
  sweep_file.write_sweep(root, {}, [], inputs={key: "a"})
  sweep_file.write_sweep(root, {}, [], inputs={"init_from=base": "b"})
  assert sweep_file.read_sweep(root)["inputs"] == {
    key: "a",
    "init_from=base": "b",
  }
  for name, changed in ((key, "c"), ("init_from=base", "d")):
    with pytest.raises(UserError) as error:
      sweep_file.write_sweep(root, {}, [], inputs={name: changed})
    assert error.value.code == "data_changed"
    assert error.value.field == name.partition("=")[0]


def test_a_sweep_in_a_run_directory_is_refused(tmp_path, monkeypatch):
  (tmp_path / files.CONFIG).write_text("{}")
  errors = printed.record_errors(monkeypatch)
  assert main(tmp_path, "--sweep=seed=0") == 2
  (error,) = errors
  assert (error.code, error.file) == ("workdir_of_a_run", str(tmp_path))
  assert [path.name for path in tmp_path.glob("*.json")] == [files.CONFIG]


def test_two_objectives_are_refused_before_a_trial(tmp_path, monkeypatch):
  errors = printed.record_errors(monkeypatch)
  argv = ("--sweep=seed=int:0:9", "--search=random", "--trials=1")
  assert main(tmp_path / "s", *argv, "--objective=count,seed") == 2
  (error,) = errors
  assert (error.code, error.field) == ("several_objectives", "--objective")
  assert not (tmp_path / "s").exists()
