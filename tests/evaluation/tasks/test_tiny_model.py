"""Tasks of a tiny network, beside a NumPy decoder."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import train_tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.evaluation.tasks import answers, choices, item_files
from instructgpt_jax.evaluation.tasks.registry import Questions
from instructgpt_jax.models.heads import LanguageModel
from tests.models import twin

CHOICES = ("good", "very bad", "bad")
PROMPTS = ("the boat is", "a cat is", "is the cat")


@pytest.fixture(scope="module")
def tokenizer():
  config = configs.Tokenizer(kind="word", vocab_size=64)
  return train_tokenizer(["the a boat cat is good very bad . "] * 2, config)


@pytest.fixture(scope="module")
def network(tokenizer):
  return LanguageModel(twin.make_config(vocab_size=tokenizer.vocab_size))


@pytest.fixture(scope="module")
def params(network):
  return twin.make_params(network)


@pytest.fixture(scope="module")
def model(network, params, tokenizer):
  mesh = mesh_lib.make_mesh(configs.Mesh())
  return TextModel.of_network(network, params, tokenizer, mesh)


def test_the_choice_with_the_best_mean_log_probability_is_taken(
  model, params, tokenizer
):
  expected = []
  for prompt in PROMPTS:
    means = []
    for choice in CHOICES:
      before, after = tokenizer.encode(prompt), tokenizer.encode(choice)
      row = np.array([before + after])
      logp = twin.log_softmax(twin.logits(params, row, np.ones_like(row))[0])
      at = np.arange(len(before) - 1, row.shape[1] - 1)
      means.append(logp[at, after].mean())
    expected.append(int(np.argmax(means)))
  for right in range(3):
    items = [choices.one_of(p, p, CHOICES, right) for p in PROMPTS]
    rows = answers.measure(
      model, Questions(item_files.make_task("sentiment", 4), items)
    )
    assert [row.scores["accuracy"] for row in rows] == [
      float(best == right) for best in expected
    ]


def test_answers_are_greedy(model, params, tokenizer):
  item = item_files.Item("0", "the cat", references=("x",))
  (row,) = answers.measure(
    model, Questions(item_files.make_task("translation", 3), [item])
  )
  ids = tokenizer.encode("the cat")
  for _ in range(3):
    logits = twin.logits(params, np.array([ids]), np.ones((1, len(ids))))
    ids.append(int(logits[0, -1].argmax()))
    if ids[-1] in tokenizer.stop_ids:
      break
  expected = tokenizer.decode(ids[2:]).split("\n")[0].strip()
  assert row.answer.text == expected
