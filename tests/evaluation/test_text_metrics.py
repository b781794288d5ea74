"""Text metrics beside second implementations, and their properties."""

import itertools
import math
import random
import sys

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import text_metrics
from tests.interop.tiny import library

WORDS = (
  "the a an The cat sat on mat, 1,000 1000 1000.0 7 -3 3.5 $41,809 17% 24-yard"
  " don't U.S. été Straße İstanbul 北京 … ! — ‘quoted’ an. nan"
).split()


def _texts(count, seed, longest=6):
  generator = random.Random(seed)
  for _ in range(count):
    length = generator.randint(0, longest)
    yield generator.choice([" ", "  ", "\t"]).join(
      generator.choices(WORDS, k=length)
    )


# --- SQuAD v2 -------------------------------------------------------------


def _squad_words(text):
  """Splits a text into SQuAD's words, character by character."""
  words, word = [], ""
  for character in text.lower() + " ":
    if character.isspace():
      words.append(word)
      word = ""
    elif not (character.isascii() and not character.isalnum()):
      word += character
  return [w for w in words if w not in ("", "a", "an", "the")]


def _squad_f1(answer, reference):
  remaining = list(reference)
  hits = 0
  for word in answer:
    if word in remaining:
      remaining.remove(word)
      hits += 1
  if not answer or not reference:
    return float(answer == reference)
  if not hits:
    return 0.0
  precision, recall = hits / len(answer), hits / len(reference)
  return 2 * precision * recall / (precision + recall)


def test_squad_scores_equal_a_second_implementation():
  answers, others = list(_texts(400, 1)), list(_texts(400, 2))
  positive = 0
  for answer, one, two in zip(answers, others, others[::-1], strict=True):
    references = [r for r in (_squad_words(one), _squad_words(two)) if r]
    words = _squad_words(answer)
    expected = max(_squad_f1(words, r) for r in references or [[]])
    assert text_metrics.token_f1(answer, [one, two]) == pytest.approx(expected)
    assert text_metrics.exact_match(answer, [one, two]) == float(
      words in (references or [[]])
    )
    positive += 0 < expected < 1
  assert positive > 100


@pytest.mark.parametrize(
  "answer, references, exact, f1",
  [
    ("The Cat!", ["cat"], 1, 1),
    ("1,000", ["1000"], 1, 1),
    ("1000.0", ["1000"], 0, 0),
    ("the the", ["cat"], 0, 0),
    ("the", [], 1, 1),  # unanswerable, and the answer is empty
    ("", [""], 1, 1),
    ("!?", ["..."], 1, 1),
    ("cat", [], 0, 0),
    ("", ["cat"], 0, 0),
    ("", ["", "cat"], 0, 0),  # an empty reference beside another is dropped
    ("cat cat", ["cat"], 0, 2 / 3),
    ("dog cat", ["cat dog"], 0, 1),
    ("there", ["the re"], 0, 0),
    ("Ãéî", ["ãéî"], 1, 1),
    ("‘cat’", ["cat"], 0, 0),  # only ASCII punctuation is removed
  ],
)
def test_squad_scores(answer, references, exact, f1):
  assert text_metrics.exact_match(answer, references) == exact
  assert text_metrics.token_f1(answer, references) == pytest.approx(f1)


def test_order_and_number_of_references():
  for answer, one, two in zip(*([_texts(90, 3)] * 3), strict=True):
    for score in (
      text_metrics.exact_match,
      text_metrics.token_f1,
      text_metrics.drop_f1,
      text_metrics.drop_exact_match,
    ):
      both = score(answer, [one, two])
      assert both == score(answer, [two, one])
      assert 0 <= both <= 1
      if text_metrics.normalize(one) and text_metrics.normalize(two):
        assert both == max(score(answer, [one]), score(answer, [two]))


def test_one_text_is_no_list_of_references():
  for score in (text_metrics.token_f1, text_metrics.drop_f1):
    with pytest.raises(TypeError):
      score("cat", "cat")


# --- DROP -----------------------------------------------------------------


def _drop_tokens(span):
  tokens = []
  for piece in span.replace("-", " ").lower().split(" "):
    try:
      tokens.append(str(float(piece)))
      continue
    except ValueError:
      pass
    piece = "".join(
      c for c in piece if not (c.isascii() and c.isprintable()) or c.isalnum()
    )
    try:
      tokens.append(str(float(piece)))
    except ValueError:
      tokens += [w for w in piece.split() if w not in ("a", "an", "the")]
  return tokens


def _drop_pair(answer, reference):
  answer, reference = set(answer), set(reference)

  def numbers(tokens):
    result = set()
    for token in tokens:
      try:
        float(token)
        result.add(token)
      except ValueError:
        pass
    return result

  if numbers(reference) and numbers(reference).isdisjoint(numbers(answer)):
    return 0.0
  common = len(answer & reference)
  precision = common / len(answer) if answer else 1.0
  recall = common / len(reference) if reference else 1.0
  if precision + recall == 0:
    return 0.0
  return 2 * precision * recall / (precision + recall)


def _drop_f1(answer, reference):
  """Tries every pairing of spans."""
  few, many = sorted(
    ([_drop_tokens(s) for s in answer], [_drop_tokens(s) for s in reference]),
    key=len,
  )
  flipped = len(answer) > len(reference)
  best = max(
    sum(
      _drop_pair(m, f) if flipped else _drop_pair(f, m)
      for f, m in zip(few, order, strict=False)
    )
    for order in itertools.permutations(many)
  )
  return best / len(many)


def test_drop_equals_all_pairings_of_spans():
  generator = random.Random(4)
  spans = list(_texts(300, 5, longest=3))
  partial = 0
  for _ in range(400):
    answer = generator.choices(spans, k=generator.randint(1, 4))
    reference = generator.choices(spans, k=generator.randint(1, 4))
    if not reference[0].strip():
      continue
    expected = _drop_f1(answer, reference)
    assert text_metrics.drop_f1(answer, [reference]) == pytest.approx(
      expected, abs=0.00501
    )
    partial += 0 < expected < 1
  assert partial > 100


@pytest.mark.parametrize(
  "answer, references, exact, f1",
  [
    ("1,000", ["1000"], 1, 1),
    ("1000.0", ["1000"], 1, 1),  # by value, unlike SQuAD
    ("$41,809", ["41809"], 1, 1),
    ("5 yards", ["6 yards"], 0, 0),  # another number scores nothing
    ("24-yard", ["24 yard"], 1, 1),
    ("heart disease", [["heart disease", "hypertension"]], 0, 0.5),
    (["b", "a c"], [["a c", "b"]], 1, 1),
    (["x", "y"], ["x"], 0, 0.5),
    ("x x y", ["y x"], 0, 1),  # a span is a set of tokens
    ("", ["x"], 0, 0),
    ("x", [""], 0, 0),
    ("x", ["", "x"], 1, 1),
    ("x y z", ["x"], 0, 0.5),
    ("x y", [["x"], ["x z", "y"]], 0, 0.67),  # rounded as DROP's script
  ],
)
def test_drop_scores(answer, references, exact, f1):
  assert text_metrics.drop_exact_match(answer, references) == exact
  assert text_metrics.drop_f1(answer, references) == pytest.approx(f1)


# --- BLEU -----------------------------------------------------------------


def _bleu(answers, references):
  """Computes corpus BLEU of texts whose tokens are separated by blanks."""
  right, total, lengths = [0] * 4, [0] * 4, [0, 0]
  for answer, texts in zip(answers, references, strict=True):
    tokens, others = answer.split(), [t.split() for t in texts]
    lengths[0] += len(tokens)
    lengths[1] += min(
      (len(o) for o in others), key=lambda n: (abs(n - len(tokens)), n)
    )
    for n in range(1, 5):
      grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
      total[n - 1] += len(grams)
      for gram in set(grams):
        most = max(
          sum(tuple(o[i : i + n]) == gram for i in range(len(o) - n + 1))
          for o in others
        )
        right[n - 1] += min(grams.count(gram), most)
  logs, halvings = [], 0
  for r, t in zip(right, total, strict=True):
    if not t:
      return 0.0
    if not r:
      halvings += 1
    logs.append(math.log(r / t if r else 0.5**halvings / t))
  penalty = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
  return 100 * penalty * math.exp(sum(logs) / 4)


def _sentences(count, seed):
  generator = random.Random(seed)
  words = "we see a big dog and the small cat run".split()
  return [
    " ".join(generator.choices(words, k=generator.randint(4, 12)))
    for _ in range(count)
  ]


def test_bleu_equals_sacrebleu_and_a_second_implementation():
  metrics = library("sacrebleu.metrics")
  answers, one, two = (_sentences(20, seed) for seed in (1, 2, 3))
  references = list(zip(one, two, strict=True))
  score = text_metrics.bleu(answers, references)
  corpus = metrics.BLEU().corpus_score(answers, [one, two])
  assert score == pytest.approx(corpus.score)
  assert score == pytest.approx(_bleu(answers, references))
  assert 0 < score < 100


def test_bleu_of_real_text_equals_sacrebleus():
  """Tokenization, and answers without any match."""
  metrics = library("sacrebleu.metrics")
  answers = ["It's 5,000 — “really”!", "", "Nothing alike.", "北京 is big"]
  references = ["It is 5,000, “really”.", "x", "zzz", "北京 is a big city."]
  corpus = metrics.BLEU().corpus_score(answers, [references])
  assert text_metrics.bleu(answers, references) == pytest.approx(corpus.score)


def test_bleu_properties():
  library("sacrebleu")
  texts = _sentences(5, 7)
  assert text_metrics.bleu(texts, texts) == pytest.approx(100)
  others = _sentences(5, 8)
  assert text_metrics.bleu(texts, others) == pytest.approx(
    text_metrics.bleu(texts[::-1], others[::-1])
  )
  assert text_metrics.bleu(["", ""], others[:2]) == 0
  for answers, references in (([], []), (["x"], [[]]), (["x"], ["x", "y"])):
    with pytest.raises(ValueError):
      text_metrics.bleu(answers, references)


def test_the_signature_is_sacrebleus():
  metrics = library("sacrebleu.metrics")
  metric = metrics.BLEU()
  metric.corpus_score(["x"], [["x"]])
  ours = set(text_metrics.bleu_signature().split("|"))
  assert ours | {"nrefs:1"} == set(str(metric.get_signature()).split("|"))


# --- ROUGE, and the rest --------------------------------------------------


def _longest_common(a, b):
  if not a or not b:
    return 0
  row = [0] * (len(b) + 1)
  for x in a:
    previous = row[:]
    for j, y in enumerate(b, 1):
      row[j] = previous[j - 1] + 1 if x == y else max(previous[j], row[j - 1])
  return row[-1]


def test_rouge_equals_a_second_implementation():
  library("rouge_score")
  for answer, reference in zip(_texts(100, 8), _texts(100, 9), strict=True):
    a, b = (
      "".join(
        c if c.isascii() and c.isalnum() else " " for c in text.lower()
      ).split()
      for text in (answer, reference)
    )
    common = _longest_common(a, b)
    expected = 2 * common / (len(a) + len(b)) if common else 0.0
    assert text_metrics.rouge_l(answer, reference) == pytest.approx(expected)


def test_rouge_with_stems_and_without():
  library("rouge_score")
  assert text_metrics.rouge_l("dogs running", "dog run") == 0
  assert text_metrics.rouge_l("dogs running", "dog run", stem=True) == 1


def test_first_line_and_words():
  assert text_metrics.first_line(" a b \r\nc") == "a b"
  assert text_metrics.first_line("\nc") == ""
  assert text_metrics.first_line("a b") == "a b"
  assert text_metrics.count_words(" two\twords ") == 2


@pytest.mark.parametrize("name", ["sacrebleu", "rouge_score"])
def test_a_missing_library_is_named(name, monkeypatch):
  text_metrics._rouge_scorer.cache_clear()
  text_metrics._bleu_metric.cache_clear()
  for module in [m for m in sys.modules if m.split(".")[0] == name]:
    monkeypatch.setitem(sys.modules, module, None)
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError) as e:
    if name == "sacrebleu":
      text_metrics.bleu(["a"], ["a"])
    else:
      text_metrics.rouge_l("a", "a")
  assert e.value.code == "missing_package"
  assert f"pip install {name.replace('_', '-')}" in e.value.fix


def test_f1_of_quac_leaves_each_reference_out():
  references = ["a boat", "two boats", "an old boat"]
  # F1 with each: 1, 0, 2/3. Best of the others: 2/3, 1, 1.
  score = text_metrics.leave_one_out_f1("the boat", references)
  assert score == pytest.approx((2 / 3 + 1 + 1) / 3)
  assert text_metrics.leave_one_out_f1("boat", ["a boat"]) == 1.0


@pytest.mark.parametrize(
  ("references", "expected"),
  [("aab", "aa"), ("ab", "b"), ("abb", "b"), ("b", "b"), ("aa", "aa")],
)
def test_references_of_quac_without_an_answer(references, expected):
  assert text_metrics.quac_references(list(references), "b") == list(expected)
