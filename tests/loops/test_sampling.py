"""Answers to many prompts against the numpy twin, whatever the batch."""

import jax
import numpy as np
import pytest

from instructgpt_jax import config
from instructgpt_jax.data.tokenizer import train_tokenizer
from instructgpt_jax.loops import sampling
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
from instructgpt_jax.runtime import mesh as mesh_lib
from tests.models import twin

WORDS = "red green blue pink grey one two three four five"
NEW = 6


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make_mesh(config.Mesh())


@pytest.fixture(scope="module")
def tokenizer():
  wanted = config.Tokenizer(kind="word", vocab_size=64)
  return train_tokenizer([WORDS] * 2, wanted)


@pytest.fixture(scope="module")
def model(tokenizer):
  return LanguageModel(twin.make_config(vocab_size=tokenizer.vocab_size))


@pytest.fixture(scope="module")
def params(model):
  return twin.make_params(model)


@pytest.fixture(scope="module")
def prompts(tokenizer):
  texts = ["red", "green blue pink", "one two", "five four three two", "grey"]
  return [np.array(tokenizer.encode(text), np.int32) for text in texts]


@pytest.fixture(scope="module")
def answer(model, params, prompts, tokenizer, mesh):
  def call(**options):
    options = {"max_new_tokens": NEW, "samples": 2, **options}
    return sampling.respond(
      model, params, prompts, jax.random.key(0), tokenizer=tokenizer,
      mesh=mesh, **options,
    )  # fmt: skip

  return call


@pytest.fixture(scope="module")
def rollout(answer):
  return answer(batch_size=16)


def test_an_answer_does_not_depend_on_its_batch(answer, rollout, tokenizer):
  other = answer(batch_size=3)
  assert len(other.tokens) == len(rollout.tokens) == 10
  texts = sampling.texts(rollout, tokenizer)
  assert sampling.texts(other, tokenizer) == texts
  assert len(set(texts)) > 5
  np.testing.assert_array_equal(other.ended, rollout.ended)


def test_samples_of_a_prompt_follow_each_other(prompts, rollout):
  width = rollout.tokens.shape[1] - NEW
  for row, tokens in enumerate(rollout.tokens[:, :width]):
    ids = prompts[row // 2]
    np.testing.assert_array_equal(tokens[-len(ids) :], ids)


def test_progress_counts_answers_and_not_what_fills_a_batch(answer):
  told = []
  answer(batch_size=4, told=told.append)
  assert told == [4, 4, 2]


def test_greedy_answers_take_the_most_likely_token(answer, params):
  found = answer(samples=1, temperature=0.0)
  logits = twin.logits(params, found.tokens, found.segments)
  best = logits[:, -NEW - 1 : -1].argmax(-1)
  mask = np.asarray(found.response_mask)
  assert mask.sum() > 5
  np.testing.assert_array_equal(found.tokens[:, -NEW:][mask], best[mask])


def total_logp(params, rollout):
  logits = twin.logits(params, rollout.tokens, rollout.segments)
  logp = twin.log_softmax(logits[:, -NEW - 1 : -1])
  picked = np.take_along_axis(logp, rollout.tokens[:, -NEW:, None], -1)[..., 0]
  return np.where(rollout.response_mask, picked, 0.0).sum(1)


@pytest.mark.parametrize("size", [4, 128])
def test_log_likelihood_is_the_twins(model, params, rollout, mesh, size):
  found = sampling.log_likelihood(model, params, rollout, mesh, size)
  np.testing.assert_allclose(found, total_logp(params, rollout), atol=2e-5)


def test_scores_are_read_at_the_last_token(model, rollout, mesh):
  network = ScalarModel(model.config)
  weights = twin.make_params(network)
  found = sampling.score(network, weights, rollout, mesh, 4)
  every = twin.scalars(weights, rollout.tokens, rollout.segments)
  last = [np.flatnonzero(row)[-1] for row in rollout.segments]
  np.testing.assert_allclose(found, every[np.arange(10), last], atol=2e-5)


def test_an_answer_can_be_judged_behind_another_prompt(
  model, params, rollout, prompts, tokenizer, mesh
):
  swapped = [prompts[(row // 2 + 1) % 5] for row in range(10)]
  other = sampling.with_prompts(rollout, swapped, tokenizer)
  assert sampling.texts(other, tokenizer) == sampling.texts(rollout, tokenizer)
  found = sampling.log_likelihood(model, params, other, mesh)
  for row, ids in enumerate(swapped):
    mask = rollout.response_mask[row]
    said = rollout.tokens[row, -NEW:][mask]
    alone = np.concatenate([ids, said])[None]
    logits = twin.logits(params, alone, np.ones_like(alone))[0]
    logp = twin.log_softmax(logits[len(ids) - 1 : -1])
    expected = logp[np.arange(len(said)), said].sum()
    assert found[row] == pytest.approx(expected, abs=2e-5)
