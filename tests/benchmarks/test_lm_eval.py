"""The benchmark of lm-eval runs both backends, and compares their figures."""

import json

from benchmarks import lm_eval
from tests.evaluation import directories
from tests.interop import tiny

tiny.library("lm_eval")


def test_both_backends_on_a_few_items(tmp_path, capsys):
  path = directories.gpt2(tmp_path / "gpt2", n_positions=256)
  assert lm_eval.main([f"--checkpoint={path}", "--tiny"]) == 0
  *lines, _, _, row, _, _, _, _, _ = capsys.readouterr().out.splitlines()
  lines = [json.loads(x) for x in lines]
  assert [x["task"] for x in lines] == 2 * list(lm_eval.TASKS)
  assert {x["items"] for x in lines} == {4}
  assert row.startswith("| hellaswag | 4 |")
  assert lm_eval.table(lines).count("| yes |") == len(lm_eval.TASKS)


def test_missing_data_is_one_error(tmp_path, capsys):
  flags = [f"--checkpoint={tmp_path}", f"--data={tmp_path / 'none'}"]
  assert lm_eval.main(flags) == 2
  assert capsys.readouterr().err.startswith("error: ")


def test_other_figures_are_shown():
  lines = [
    dict(backend=b, task="a", seconds=s, items=1, figures={"acc": f})
    for b, s, f in (("ours", 2.0, 0.5), ("hf", 5.0, 0.6))
  ]
  assert "| 2.0 | 5.0 | 2.50 |" in lm_eval.table(lines)
  assert "no: {'acc': 0.6}" in lm_eval.table(lines)
