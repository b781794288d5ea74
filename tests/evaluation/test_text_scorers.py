"""N-gram scorers, the toxicity scorer, classifiers and TruthfulQA's judge."""

import csv
import gzip
import json
import math
import sys

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  classifier,
  ngram_scorer,
  toxicity,
  truth_judge,
)
from tests.interop.tiny import library

GOOD = ["a kind and gentle reply", "thank you very much", "a sunny day"]
BAD = ["you vile stupid fool", "what stupid trash", "vile trash talk"]


def _samples(path, contexts=12):
  """Writes released samples: vile texts are toxic."""
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(
      ["", "model_type", "prompt_type", "context", "sample", "toxicity"]
    )
    for i in range(contexts):
      for model, texts, score in (("gpt-xl", GOOD, 0.1), ("sft-xl", BAD, 0.9)):
        writer.writerow(
          [i, model, "basic prompt", f"context {i}", texts[i % 3], score]
        )
  return str(path)


# --- N-gram scorers ---------------------------------------------------------


def test_a_scorer_learns_and_is_deterministic(tmp_path):
  targets = np.array([0.1] * 3 + [0.9] * 3)
  scorer = ngram_scorer.fit(GOOD + BAD, targets)
  scores = scorer.score([*GOOD, *BAD, "stupid VILE words", "a gentle day"])
  assert np.abs(scores[:6] - targets).max() < 0.05
  assert scores[6] > 0.7 > 0.3 > scores[7]
  again = ngram_scorer.fit(GOOD + BAD, targets)
  np.testing.assert_array_equal(again.weights, scorer.weights)
  scorer.facts = {"n": 6}
  path = str(tmp_path / "x.npz")
  scorer.save(path)
  loaded = ngram_scorer.load(path, fix="")
  np.testing.assert_array_equal(loaded.score(BAD), scorer.score(BAD))
  assert loaded.facts == {"n": 6}


def test_the_gradient_leads_to_the_optimum():
  """At the optimum the mean residual is 0, because the bias has no penalty."""
  targets = np.linspace(0.1, 0.9, 6)
  scores = ngram_scorer.fit(GOOD + BAD, targets).score(GOOD + BAD)
  assert scores.mean() == pytest.approx(targets.mean(), abs=1e-3)


def test_odd_texts_have_scores():
  scorer = ngram_scorer.fit(GOOD + BAD, np.array([0.0] * 3 + [1.0] * 3))
  scores = scorer.score(["", " \n", "北京 été", "\ud800", "x" * 10_000])
  assert np.isfinite(scores).all() and scores[0] == scores[1]
  assert scorer.score([]).shape == (0,)


def test_no_group_is_in_both_parts():
  """A target that only its own group reveals cannot be predicted."""
  groups = [f"g{i}" for i in range(60) for _ in range(2)]
  texts = [f"word{i}xyz" for i in range(60) for _ in range(2)]
  targets = np.repeat(np.random.default_rng(0).integers(0, 2, 60), 2) * 1.0
  scores, others = ngram_scorer.score_held_out(
    texts, targets, groups, [("g3", texts[6])]
  )
  assert abs(ngram_scorer.pearson(scores, targets)) < 0.35
  assert (
    ngram_scorer.accuracy(
      ngram_scorer.fit(texts, targets).score(texts), targets
    )
    == 1.0
  )
  assert others[0] == pytest.approx(scores[6])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY junk"])
def test_another_file_is_no_scorer(tmp_path, content):
  path = tmp_path / "x.npz"
  path.write_bytes(content)
  with pytest.raises(UserError) as e:
    ngram_scorer.load(str(path), fix="fit it")
  assert e.value.code == "bad_scorer"
  with pytest.raises(UserError) as e:
    ngram_scorer.load(str(tmp_path / "none.npz"), fix="fit it")
  assert e.value.code == "no_file"


def test_a_pickle_is_not_read(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, format=np.array([{}], object))
  with pytest.raises(UserError) as e:
    ngram_scorer.load(str(path), fix="")
  assert e.value.code == "bad_scorer"


def test_correlations_equal_scipys():
  stats = library("scipy.stats")
  draw = np.random.default_rng(1)
  x, y = draw.integers(0, 5, 80) * 1.0, draw.normal(size=80)
  assert ngram_scorer.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
  assert ngram_scorer.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
  pairs = [(a > b) + 0.5 * (a == b) for a in x[y > 0.5] for b in x[y <= 0.5]]
  assert ngram_scorer.area_under_curve(x, y) == pytest.approx(np.mean(pairs))
  assert math.isnan(ngram_scorer.pearson(np.ones(3), np.arange(3)))


# --- Toxicity ---------------------------------------------------------------


def test_toxicity_is_fitted_and_measured(tmp_path, capsys):
  samples = _samples(tmp_path / "real_toxicity_samples.csv")
  path = str(tmp_path / "toxicity.npz")
  arguments = [f"--samples={samples}"]
  assert toxicity.main([*arguments, f"--output={path}"]) == 0
  assert "12 contexts" in capsys.readouterr().out
  judge = toxicity.Judge(toxicity.open_scorer(path))
  scores = judge(["q", "q"], ["what vile trash", "a sunny day"])["toxicity"]
  assert scores[0] > 0.7 > 0.3 > scores[1]
  assert toxicity.main([*arguments, f"--scorer={path}"]) == 0
  assert "pearson: 1.000" in capsys.readouterr().out


def test_errors_of_the_toxicity_command(tmp_path, capsys):
  samples = _samples(tmp_path / "x.csv", contexts=1)
  both = ["--output=x.npz", "--scorer=x.npz"]
  for flags in ([], both, ["--output=x.npz"], ["--scorer=none.npz"]):
    assert toxicity.main([f"--samples={samples}", *flags]) == 2
  assert "too few" in capsys.readouterr().err
  with pytest.raises(UserError) as e:
    toxicity.open_scorer("x.npz", label="toxic")
  assert e.value.code == "no_label"


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
  """Writes tiny BERT classifiers: multi-label, and two classes."""
  library("torch")
  transformers = library("transformers")
  top = tmp_path_factory.mktemp("classifiers")
  words = "[PAD] [UNK] [CLS] [SEP] [MASK] you vile fool a kind reply".split()
  vocabulary = top / "vocab.txt"
  vocabulary.write_text("\n".join(words))
  for name, problem in (
    ("multi", "multi_label_classification"),
    ("single", "single_label_classification"),
  ):
    config = transformers.BertConfig(
      vocab_size=len(words),
      hidden_size=8,
      num_hidden_layers=1,
      num_attention_heads=2,
      intermediate_size=8,
      max_position_embeddings=12,
      num_labels=2,
      id2label={0: "Neutral", 1: "Toxic"},
      problem_type=problem,
    )
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(top / name)
    if name == "single":
      model.bert.save_pretrained(top / "headless")
    tokenizer = transformers.BertTokenizerFast(
      vocab={word: i for i, word in enumerate(words)}
    )
    tokenizer.save_pretrained(top / name)
    tokenizer.save_pretrained(top / "headless")
  return top


@pytest.mark.parametrize("name", ["multi", "single"])
def test_a_classifier_equals_transformers(classifiers, name):
  torch, transformers = library("torch"), library("transformers")
  path = str(classifiers / name)
  texts = ["you vile fool", "a kind reply", "a"]
  scorer = toxicity.open_scorer(path, label="toxic")
  model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  expected = []
  for text in texts:
    with torch.no_grad():
      logits = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0]
    values = logits.sigmoid() if name == "multi" else logits.softmax(-1)
    expected.append(float(values[1]))
  np.testing.assert_allclose(scorer.score(texts), expected, atol=1e-5)
  assert scorer.cut == 0
  assert np.isfinite(scorer.score(["vile " * 50])).all() and scorer.cut == 1
  assert scorer.score([]).shape == (0,)


def test_what_a_classifier_refuses(classifiers, tmp_path, monkeypatch):
  def code(path, label="toxic"):
    with pytest.raises(UserError) as e:
      toxicity.open_scorer(str(path), label=label)
    return e.value.code

  multi = classifiers / "multi"
  assert code(multi, "insult") == code(multi, "") == "unknown_label"
  assert code(classifiers / "headless", "") == "missing_tensor"
  assert code(tmp_path) == "no_file"
  config = json.loads((multi / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "pytorch_model.bin").write_bytes(b"x")
  assert code(tmp_path) == "no_safetensors"
  (tmp_path / "model.safetensors").write_bytes(b"x")
  assert code(tmp_path) == "bad_classifier"
  config["auto_map"] = {"AutoConfig": "code.Config"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert code(tmp_path) == "remote_code"
  settings = multi / "tokenizer_config.json"
  text = settings.read_text()
  changed = {k: v for k, v in json.loads(text).items() if k != "pad_token"}
  settings.write_text(json.dumps(changed | {"pad_token": None}))
  assert code(multi) == "no_padding"
  settings.write_text(text)
  monkeypatch.setitem(sys.modules, "transformers", None)
  with pytest.raises(UserError) as e:
    classifier.Classifier(str(multi), "toxic")
  assert e.value.code == "missing_package"


# --- TruthfulQA's judge -----------------------------------------------------


def _judge_data(path, name, questions=10):
  with gzip.open(path, "wt", encoding="utf-8") as file:
    for i in range(questions):
      for answer, label in (("No comment.", " yes"), ("It is magic.", " no")):
        prompt = f"Q: Is it {i}?\nA: {answer}\n{truth_judge.WORDS[name]}:"
        record = json.dumps({"prompt": prompt, "completion": label})
        file.write((record + "\n") * 2)
  return str(path)


def test_the_judge_is_fitted_from_released_data(tmp_path, capsys):
  paths = {
    n: _judge_data(tmp_path / f"{n}.jsonl.gz", n) for n in ("truth", "info")
  }
  output = str(tmp_path / "judge")
  flags = [f"--{name}={path}" for name, path in paths.items()]
  samples = tmp_path / "truthful_qa_samples.csv"
  samples.write_text(
    "model_type,prompt_type,adversarial,question,answer,true,info\n"
    "gpt-xl,QA prompt,True,Is it 1?,No comment.,0.9,0.9\n"
    "gpt-xl,QA prompt,True,Is it 2?,It is magic.,0.1,0.2\n"
  )
  status = truth_judge.main(
    [*flags, f"--output={output}", f"--samples={samples}"]
  )
  assert status == 0
  printed = capsys.readouterr().out
  assert "20 labels of 10 questions; 20 that repeat" in printed
  assert printed.count("questions not seen: agreement 1.000") == 4
  judge = truth_judge.open_judge(output)
  scores = judge(["q", "q"], ["No comment.", "It is magic."])
  for values in (scores.true, scores.informative):
    assert values[0] > 0.9 > 0.1 > values[1]


def test_errors_of_judge_data(tmp_path):
  def code(path, name="truth"):
    with pytest.raises(UserError) as e:
      truth_judge.read_labels(str(path), name)
    return e.value.code, e.value.line

  info = _judge_data(tmp_path / "info.jsonl.gz", "info")
  assert code(info) == ("wrong_judge_file", 1)
  one = _judge_data(tmp_path / "one.jsonl.gz", "truth", questions=1)
  assert code(one)[0] == "few_questions"
  bad = tmp_path / "bad.jsonl"
  good = {"prompt": "Q: x\nA: y\nTrue:", "completion": " yes"}
  for change in ({"completion": "yes"}, {"prompt": "x"}, {"prompt": None}):
    lines = [json.dumps(good), json.dumps(good | change)]
    bad.write_text("\n".join(lines) + "\n")
    assert code(bad) == ("bad_judge_record", 2)


class _Total:
  def __init__(self, total):
    self.total = total


class _Model:
  """Knows one answer, and never prefers " yes" by more than its odds."""

  def log_likelihoods(self, pairs):
    self.pairs = list(pairs)
    return [
      _Total(
        math.log(0.3 if label == " yes" else 0.1) - 50 * ("long" in prompt)
      )
      for prompt, label in pairs
    ]


def test_a_model_judges_by_the_odds_of_yes():
  truth, info = _Model(), _Model()
  judge = truth_judge.ModelJudge(truth, info)
  scores = judge(["Why?", "Why?"], ["So.", "A long answer."])
  np.testing.assert_allclose(scores.true, [0.75, 0.75])
  np.testing.assert_allclose(scores.informative, [0.75, 0.75])
  assert ("Q: Why?\nA: So.\nTrue:", " yes") in truth.pairs
  assert ("Q: Why?\nA: So.\nHelpful:", " no") in info.pairs
  assert judge([], []).true.shape == (0,)
