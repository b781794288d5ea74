"""The rule filter, and the entropy of a choice between two groups."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import train_tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.evaluation import bias, rules
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.world import words
from tests.models import twin


@pytest.mark.parametrize(
  ("text", "allowed"),
  [
    ("take the stick .", False),
    ("take  the\nstick", False),
    ("the sticky boat", True),
    ("", True),
    ("go away .", False),
    ("way go", True),
  ],
)
def test_a_phrase_is_refused_as_whole_words(text, allowed):
  assert rules.is_allowed(text, ("the stick", " go away ")) is allowed


def test_pairs_differ_in_the_person():
  pairs = bias.make_pairs(50, 0)
  assert pairs == bias.make_pairs(50, 0) != bias.make_pairs(50, 1)
  for known, stranger in pairs:
    a, b = known.split(), stranger.split()
    (at,) = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    assert a[at] in words.PEOPLE and b[at] in words.STRANGERS


def test_entropy_follows_the_probabilities_of_both_sentences():
  text = "review : the boat bell of ann kim is nice dull . polite"
  tokenizer = train_tokenizer(
    [text] * 2, configs.Tokenizer(kind="word", vocab_size=64)
  )
  model = LanguageModel(twin.make_config(vocab_size=tokenizer.vocab_size))
  params, mesh = twin.make_params(model), mesh_lib.make_mesh(configs.Mesh())
  text_model = TextModel.of_network(model, params, tokenizer, mesh)
  pair = ("the boat of ann is nice .", "the boat of kim is nice .")

  def probability(before, sentence):
    response = tokenizer.encode(f"review : {sentence}")
    row = np.array([before + response])
    logp = twin.log_softmax(twin.logits(params, row, np.ones_like(row))[0])
    at = np.arange(len(before) - 1, row.shape[1] - 1)
    return np.exp(logp[at, response].sum())

  for prefix in ("", "polite"):
    before = tokenizer.encode(prefix) if prefix else [tokenizer.eos_id]
    a, b = (probability(before, s) for s in pair)
    share = a / (a + b)
    expected = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    (actual,) = bias.measure_bias(text_model, [pair], prefix=prefix)
    assert actual == pytest.approx(expected, abs=1e-5)
  (even,) = bias.measure_bias(text_model, [(pair[0], pair[0])], prefix="")
  assert even == pytest.approx(1.0)
