"""Time of stages to their first step."""

import json
import textwrap

import pytest

from benchmarks import start

# Stands for a stage: compiles for a second unless its cache holds something,
# takes a step, and goes on.
STAGE = """
  import pathlib, sys, time
  flags = dict(x.removeprefix("--").split("=", 1) for x in sys.argv[1:])
  cache = pathlib.Path(flags["run.compile_cache"])
  workdir = pathlib.Path(flags["workdir"])
  if "broken" in flags["config"]:
    sys.exit("error: something is wrong")
  if not cache.exists():
    time.sleep(1)
    cache.mkdir()
  workdir.mkdir()
  assert flags["run.log_every"] == "1"
  (workdir / "metrics.jsonl").write_text('{"step": 1}')
  time.sleep(60)
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Returns a pipeline's directory with the config of one stage."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "experiments").mkdir()
  code = textwrap.dedent(STAGE)
  (tmp_path / "experiments" / "sft.py").write_text(code, encoding="utf-8")

  def make(name):
    (tmp_path / name / "sft").mkdir(parents=True)
    text = json.dumps({"experiment": "sft"})
    path = tmp_path / name / "sft" / "config.json"
    path.write_text(text, encoding="utf-8")
    return f"--runs={name}"

  return make


def test_the_second_start_reuses_compiled_programs(runs, capsys):
  assert start.main([runs("whole")]) == 0
  (line,) = map(json.loads, capsys.readouterr().out.splitlines())
  assert line["stage"] == "sft"
  assert 0 < line["second_start_s"] < line["first_start_s"] - 0.2 < 30


def test_a_stages_error_is_shown(runs, tmp_path, capsys):
  with pytest.raises(SystemExit, match=r"config.json: no .*something is wrong"):
    start.main([runs("broken")])
  with pytest.raises(SystemExit):
    start.main([f"--runs={tmp_path}"])
  assert "holds no stage" in capsys.readouterr().err
