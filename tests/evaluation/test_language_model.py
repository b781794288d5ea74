"""A text model agrees with the network's own logits, in any batch."""

from __future__ import annotations

import numpy as np
import pytest

from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import language_model
from instructgpt_jax.evaluation.generation import cut_at_stop
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.training import stage_model
from tests.evaluation import directories
from tests.evaluation.directories import TEXTS
from tests.models import twin

CONTEXT = 64


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def path(request, tmp_path_factory):
  pytest.importorskip("transformers")
  root = tmp_path_factory.mktemp("text")
  return str(getattr(directories, request.param)(root / request.param))


@pytest.fixture(scope="module")
def model(path):
  return TextModel(path)


@pytest.fixture(scope="module")
def logits(path):
  """Returns ids → their logits, by the network without packing."""
  network, params, _, _ = stage_model.load_policy(path)
  apply = twin.jit(network.apply)

  def compute(ids):
    tokens = np.zeros((1, CONTEXT), np.int32)
    tokens[0, : len(ids)] = ids
    segments = (np.arange(CONTEXT) < len(ids)).astype(np.int32)[None]
    positions = np.arange(CONTEXT, dtype=np.int32)[None]
    return np.asarray(
      apply({"params": params}, tokens, segments, positions), np.float64
    )[0, : len(ids)]

  return compute


def score(logits, context, ids):
  """Scores ids token by token, each after as many as the model reads."""
  tokens = [*context, *ids]
  total, greedy = 0.0, True
  stop = len(context)
  while stop < len(tokens):
    end = min(stop + CONTEXT, len(tokens))
    window = tokens[max(0, end - CONTEXT - 1) : end]
    rows = logits(window[:-1])[-(end - stop) :]
    logp = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    targets = tokens[stop:end]
    total += logp[np.arange(end - stop), targets].sum()
    greedy &= (rows.argmax(axis=1) == targets).all()
    stop = end
  return total, greedy


def continue_greedily(logits, ids, count):
  ids, start = list(ids), len(ids)
  for _ in range(count):
    ids.append(int(logits(ids)[-1].argmax()))
  return ids[start:]


PAIRS = [
  ("Question: who", " sang?"),
  ("Question: who", " saw the bird sing for owls"),
  ("", "The fox"),
  ("fox " * 80, " barn"),
  ("The fox", " and it sang" * 30),  # a continuation beyond the context
  ("na", "ïve"),  # a token spans the border
  ("The fox  ", ""),
  ("  ", "a bird"),
]


def test_scores_are_those_of_the_network(model, logits):
  greedy = continue_greedily(logits, model.encode("The fox"), 6)
  pairs = [*PAIRS, ("The fox", model.decode(greedy))]
  encoded = model.encode_pairs(pairs)
  for result, (context, ids) in zip(
    model.log_likelihoods(pairs), encoded, strict=True
  ):
    total, is_greedy = score(logits, context, ids)
    assert result.total == pytest.approx(total, abs=1e-4)
    assert (result.is_greedy, result.tokens) == (is_greedy, len(ids))
  assert model.log_likelihoods([]) == []


def test_pairs_are_encoded_as_one_text(model):
  for (context, text), (before, ids) in zip(
    PAIRS, model.encode_pairs(PAIRS), strict=True
  ):
    assert bool(ids) == bool(context.rstrip() != context or text)
    if context.strip() and context != "na":
      assert [*before, *ids] == model.encode(context + text)
    elif not context.strip():
      assert before == [model.prefix_id]
      assert ids == model.encode(context + text, begin=False)
  before, ids = model.encode_pairs([("na", "ïve")])[0]
  assert before == model.encode("na")
  assert "ïve" in model.decode([*model.encode("a", begin=False), *ids])


def test_rolling_scores_each_token_once(model, logits):
  texts = [TEXTS[0], TEXTS[1] * 9, "a", ""]
  for text, result in zip(
    texts, model.rolling_log_likelihoods(texts), strict=True
  ):
    ids = model.encode(text, begin=False)
    total, greedy = score(logits, [model.prefix_id], ids)
    assert result.total == pytest.approx(total, abs=1e-4)
    assert (result.is_greedy, result.tokens) == (greedy, len(ids))


def test_results_do_not_depend_on_the_batch(model, path, monkeypatch):
  """Neither on its rows, nor on what else is asked."""
  pairs = [(t[:i], t[i : i + 9]) for t in TEXTS for i in range(1, 60, 7)]
  expected = model.log_likelihoods(pairs)
  monkeypatch.setitem(language_model._BATCH_TOKENS, "cpu", 128)
  for results in (
    TextModel(path, batch_size=3).log_likelihoods(pairs),
    [
      r
      for i in range(0, len(pairs), 9)
      for r in model.log_likelihoods(pairs[i : i + 9])
    ],
    model.log_likelihoods(pairs[::-1])[::-1],
  ):
    assert [r.total for r in results] == pytest.approx(
      [r.total for r in expected], abs=1e-4
    )
    assert [r[1:] for r in results] == [r[1:] for r in expected]


def test_greedy_texts_are_those_of_the_network(model, logits):
  prompts = ["The fox", "Question: who sang? Answer:", "fox " * 80, ""]
  texts = model.generate(prompts, max_tokens=12)
  for prompt, text in zip(prompts, texts, strict=True):
    ids = (model.encode(prompt) or [model.prefix_id])[-(CONTEXT - 12) :]
    answer = continue_greedily(logits, ids, 12)
    ends = [i for i, t in enumerate(answer) if t in model.tokenizer.stop_ids]
    assert text == model.decode(answer[: min(ends, default=12)])


def test_stop_strings_span_tokens(model):
  (text,) = model.generate(["The fox"], max_tokens=24)
  assert len(text) > 8
  for start in range(1, len(text) - 3, 3):
    stop = text[start : start + 3]
    (cut,) = model.generate(["The fox"], max_tokens=24, stop=["", "§§", stop])
    assert cut == text[: text.index(stop)]


def test_special_tokens_stop(model):
  """A stop string may be a token that is not in the text."""
  names = [model.tokenizer.token(i) for i in range(7)]
  assert "<|end|>" in names
  assert model.generate(["The"], max_tokens=4, stop=["<|user|>"])


def test_draws_depend_on_seed_and_place_only(model, path):
  prompts = ["The fox", "A bird", "Question: who", "The fox", "barn"]
  settings = dict(max_tokens=9, temperature=1.3, top_p=0.9, top_k=40)
  texts = model.generate(prompts, seed=3, **settings)
  assert model.generate(prompts, seed=3, **settings) == texts
  assert model.generate(prompts, seed=4, **settings) != texts
  assert texts[0] != texts[3]
  two = TextModel(path, batch_size=2)
  assert two.generate(prompts, seed=3, **settings) == texts
  greedy = model.generate(prompts, max_tokens=9)
  assert greedy == model.generate(
    prompts, max_tokens=9, temperature=2.0, top_k=1, seed=7
  )


def test_chat_templates(model):
  turns = [Turn("system", "Be short."), Turn("user", "Who?")]
  mappings = [{"role": t.role, "content": t.text} for t in turns]
  text = model.chat(turns)
  assert text == model.chat(mappings)
  assert text.endswith("<|user|>\nWho?<|end|>\n<|assistant|>\n")
  begun = [*turns, Turn("assistant", " The ")]
  assert model.chat(begun, False) == text + " The "
  marks = [model.tokenizer.token_id(n) for n in ("<|user|>", "<|end|>")]
  assert set(marks) <= set(model.encode(text))


@pytest.mark.parametrize(
  "settings",
  [
    {"max_tokens": CONTEXT},
    {"max_tokens": 0},
    {"temperature": -1},
    {"top_p": 1.5},
    {"top_k": -1},
    {"max_tokens": 2.5},
  ],
)
def test_bad_settings_are_refused(model, settings):
  with pytest.raises(UserError) as error:
    model.generate(["a"], **{"max_tokens": 4, **settings})
  assert (error.value.code, error.value.field) == (
    "out_of_range",
    next(iter(settings)),
  )


def test_a_shorter_context(path, logits, capfd):
  model = TextModel(path, context=16)
  (result,) = model.log_likelihoods([("fox " * 40, " barn")])
  assert "1 of 1 contexts are cut" in capfd.readouterr().err
  context, ids = model.encode_pairs([("fox " * 40, " barn")])[0]
  window = [*context, *ids][-17:]
  total, _ = score(logits, window[: -len(ids)], ids)
  assert result.total == pytest.approx(total, abs=1e-4)


def test_cut_at_stop():
  assert cut_at_stop("a b c", ["c", "b"]) == ("a ", True)
  assert cut_at_stop("a b c", ["d"]) == ("a b c", False)
  assert cut_at_stop("a", []) == ("a", False)
