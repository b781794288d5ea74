"""Released samples: small files made here, and the real ones if present.

  python -m tests.evaluation.test_openai_samples

writes the golden figures again, after a deliberate change of a scorer.
"""

import csv
import functools
import json
import pathlib

import numpy as np
import pytest

from experiments import openai_samples
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import released_samples, text_metrics
from instructgpt_jax.evaluation.released_samples import SOURCES, Model
from tests.interop.tiny import library

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "evaluation" / "openai_samples.json"
SHARED = ROOT.parent / "shared" / "data" / "instructgpt_samples"
real_samples = pytest.mark.skipif(
  not SHARED.is_dir(), reason="../shared/data/instructgpt_samples is not there"
)


def _write(path, rows, *, newline="\n", mark=""):
  names = list(rows[0])
  with open(path, "w", newline="", encoding="utf-8") as file:
    file.write(mark)
    writer = csv.DictWriter(file, names, lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def _squad_rows(contexts=2):
  """Makes rows in which GPT is right and the others are wrong."""
  return [
    {
      "": i,
      "model_type": model,
      "prompt_type": prompt_type,
      "context": f"Title: x{i}\n\nQ: question {i}?\n\nA:",
      "ref_text": f"the answer {i}|{i}",
      "sample": f"{i}." if model == "gpt-175b" else "something\nelse",
    }
    for i in range(contexts)
    for model in ("gpt-175b", "ppo-noptx-175b", "ppo-ptx-175b")
    for prompt_type in ("fewshot", "zeroshot")
  ]


def _code(path, name="squadv2"):
  with pytest.raises(UserError) as e:
    released_samples.read(str(path), name)
  return e.value


def test_differences_are_paired_by_context(tmp_path, capsys):
  _write(tmp_path / "squadv2_samples.csv", _squad_rows(40))
  (tmp_path / "quac_samples.csv").write_text("a,b\n1,2\n")
  output = tmp_path / "out"
  status = openai_samples.main([f"--samples={tmp_path}", f"--output={output}"])
  assert status == 0
  results = json.loads((output / "results.json").read_text())
  cell = results["scores"]["squadv2"]["f1"]["fewshot"]["gpt 175B"]
  assert cell["mean"] == pytest.approx(100) and cell["units"] == 40
  difference = results["differences"]["squadv2"]["f1"]["fewshot"]["ppo 175B"]
  assert difference["mean"] == pytest.approx(-100)
  assert set(results["differences"]["squadv2"]["f1"]["fewshot"]) == {
    "ppo 175B",
    "ptx 175B",
  }
  assert results["not_read"] == ["quac_samples.csv"]
  assert "drop" in results["missing"]
  printed = capsys.readouterr().out
  assert "not read: quac_samples.csv" in printed
  assert "missing: drop_samples.csv" in printed
  text = (output / "results.md").read_text()
  assert "| fewshot | GPT | – | – | 100.0" in text
  assert "quac_samples.csv: not read" in text
  picture = (output / "alignment_tax.svg").read_text()
  assert picture.startswith("<svg") and "PPO-ptx" in picture


def test_only_contexts_of_both_models_are_compared(tmp_path):
  rows = [
    r for r in _squad_rows(3) if (r[""], r["model_type"]) != (2, "gpt-175b")
  ]
  path = _write(tmp_path / "squadv2_samples.csv", rows)
  source = SOURCES["squadv2"]
  metric = source.metrics["f1"]
  scores = released_samples.score(
    released_samples.read(path, "squadv2"), metric
  )
  base = scores[Model("gpt", "175B")]["fewshot"]
  cell = scores[Model("ppo", "175B")]["fewshot"]
  difference = functools.partial(
    released_samples.estimate_difference, source, metric, cell
  )
  assert difference(base).units == 2 and difference({}) is None


def test_contexts_about_one_passage_are_one_unit():
  for name, questions in (
    ("squadv2", "\n\nQ: Who?\n\nA: Ann\n\nQ: {}\n\nA:"),
    ("drop", "\nQuestion: {}\nAnswer:"),
    ("tldr", "\n\n{}\n\nTL;DR:"),
  ):
    source = SOURCES[name]
    metric = next(iter(source.metrics.values()))
    cell = {
      f"Passage {i // 2}" + questions.format(i): float(i % 4) for i in range(8)
    }
    units = 8 if name == "tldr" else 4
    other = dict.fromkeys(cell, 1.0)
    estimate = released_samples.estimate(source, metric, cell)
    assert estimate.units == units
    assert (
      released_samples.estimate_difference(source, metric, cell, other).units
      == units
    )


def test_a_byte_order_mark_and_windows_newlines(tmp_path):
  rows = _squad_rows()
  plain = _write(tmp_path / "squadv2_samples.csv", rows)
  other = _write(tmp_path / "other.csv", rows, newline="\r\n", mark="\ufeff")
  assert released_samples.read(plain, "squadv2") == released_samples.read(
    other, "squadv2"
  )


@pytest.mark.parametrize(
  "field, value, code",
  [
    ("model_type", "gpt-13b", "unknown_model_type"),
    ("prompt_type", "oneshot", "unknown_prompt_type"),
  ],
)
def test_an_unknown_name_has_its_line(tmp_path, field, value, code):
  rows = _squad_rows()
  rows[1][field] = value
  error = _code(_write(tmp_path / "x.csv", rows))
  # The first row's context has five lines.
  assert (error.code, error.line, error.field) == (code, 7, field)


def test_columns_are_those_of_the_release(tmp_path):
  rows = _squad_rows()
  missing = [{k: v for k, v in r.items() if k != "ref_text"} for r in rows]
  assert _code(_write(tmp_path / "a.csv", missing)).code == "missing_column"
  more = [r | {"judge": "x"} for r in rows]
  assert _code(_write(tmp_path / "b.csv", more)).code == "unknown_column"
  unnumbered = [{k: v for k, v in r.items() if k} for r in rows]
  path = _write(tmp_path / "c.csv", unnumbered)
  assert len(released_samples.read(path, "squadv2")) == len(rows)


def test_a_repeated_sample_names_both_lines(tmp_path):
  rows = _squad_rows(1)
  error = _code(_write(tmp_path / "x.csv", [rows[0], rows[0]]))
  assert error.code == "duplicate_sample" and "line 2" in error.problem


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "inf", "", "high"])
def test_a_score_is_a_number_from_0_to_1(tmp_path, value):
  row = {
    "model_type": "gpt-xl",
    "prompt_type": "basic prompt",
    "context": "The",
    "sample": "end",
    "toxicity": value,
  }
  error = _code(_write(tmp_path / "x.csv", [row]), "real_toxicity")
  assert (error.code, error.field, error.line) == ("bad_score", "toxicity", 2)


def test_a_directory_without_the_files(tmp_path, capsys):
  assert openai_samples.main([f"--samples={tmp_path / 'none'}"]) == 2
  assert openai_samples.main([f"--samples={tmp_path}"]) == 2
  assert capsys.readouterr().err.count("automatic-eval-samples") == 2
  (tmp_path / "drop_samples.csv").write_text("model_type,prompt_type\n")
  assert _code(tmp_path / "drop_samples.csv", "drop").code == "no_samples"


def test_an_empty_answer_is_an_answer(tmp_path):
  rows = _squad_rows(1)
  rows[0]["sample"] = ""
  path = _write(tmp_path / "x.csv", rows)
  assert released_samples.read(path, "squadv2")[0].answer == ""


def test_figures_of_the_full_files_are_complete():
  figures = openai_samples.full_figures()
  assert all(len(models) == 12 for models in figures.values())
  for name, metric, prompt_type in figures:
    assert prompt_type in SOURCES[name].prompt_types
    assert metric in SOURCES[name].metrics


# --- The released samples ---------------------------------------------------


def _means(directory):
  """Returns every mean: file → metric → prompt type → model."""
  means = {}
  for name, path in released_samples.find_files(str(directory)).items():
    samples = released_samples.read(str(path), name)
    for metric_name, metric in SOURCES[name].metrics.items():
      for model, row in released_samples.score(samples, metric).items():
        for prompt_type, cell in row.items():
          values = np.array(list(cell.values()))
          mean = (
            text_metrics.bleu_of_counts(values.sum(axis=0))
            if metric.is_bleu
            else values.mean()
          )
          table = means.setdefault(name, {}).setdefault(metric_name, {})
          table.setdefault(prompt_type, {})[str(model)] = round(float(mean), 4)
  return means


@real_samples
def test_means_are_the_golden_ones():
  library("sacrebleu"), library("rouge_score")
  means = _means(SHARED)
  golden = json.loads(GOLDEN.read_text())
  assert set(means) == set(golden)
  for name, metrics in golden.items():
    for metric, table in metrics.items():
      for prompt_type, row in table.items():
        assert means[name][metric][prompt_type] == pytest.approx(
          row, abs=1e-3
        ), (name, metric, prompt_type)


@real_samples
def test_bleu_of_each_cell_is_sacrebleus():
  metrics = library("sacrebleu.metrics")
  golden = json.loads(GOLDEN.read_text())["fr_to_en"]["bleu"]
  cells = {}
  for sample in released_samples.read(
    str(SHARED / "fr_to_en_samples.csv"), "fr_to_en"
  ):
    cells.setdefault((sample.prompt_type, str(sample.model)), []).append(
      (sample.answer.strip(), sample.reference)
    )
  assert len(cells) == 24
  for (prompt_type, model), pairs in cells.items():
    answers, references = zip(*pairs, strict=True)
    corpus = metrics.BLEU().corpus_score(list(answers), [list(references)])
    assert golden[prompt_type][model] == pytest.approx(corpus.score, abs=1e-3)


def test_golden_means_are_near_those_of_the_full_files():
  """60 % of the contexts are here; the rest is sampling."""
  golden = json.loads(GOLDEN.read_text())
  limits = {"f1": 8, "bleu": 4, "rouge_l": 2, "words": 6, "toxicity": 0.04}
  for (name, metric, prompt_type), row in openai_samples.full_figures().items():
    differences = [
      golden[name][metric][prompt_type][str(model)] - value
      for model, value in row.items()
    ]
    assert np.abs(differences).max() < limits.get(metric, 0.1), (name, metric)
    assert np.abs(np.mean(differences)) < limits.get(metric, 0.1) / 2


if __name__ == "__main__":
  GOLDEN.write_text(json.dumps(_means(SHARED), indent=1) + "\n")
