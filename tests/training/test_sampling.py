"""Answers to many prompts equal the numpy twin's, for all batch sizes."""

import copy

import jax
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import train_tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.training import sampling, scoring
from tests.models import twin

WORDS = "red green blue pink grey one two three four five"
NEW = 6


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make_mesh(configs.Mesh())


@pytest.fixture(scope="module")
def tokenizer():
  settings = configs.Tokenizer(kind="word", vocab_size=64)
  return train_tokenizer([WORDS] * 2, settings)


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
  def call(on_progress=None, **options):
    return sampling.respond(
      model, params, prompts, jax.random.key(0), mesh=mesh,
      sampling=params_of(tokenizer, **options), on_progress=on_progress,
    )  # fmt: skip

  return call


def params_of(tokenizer, **options):
  options = {"max_new_tokens": NEW, "samples": 2, "batch_size": 16, **options}
  return sampling.sampling_params(tokenizer, **options)


@pytest.fixture(scope="module")
def rollout(answer):
  return answer()


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


def test_progress_counts_answers_without_batch_padding(answer):
  reported = []
  answer(batch_size=1, on_progress=reported.append)
  assert reported == [4, 4, 2]


def test_other_numbers_of_prompts_find_the_same_program(
  answer, rollout, prompts, model, params, tokenizer, mesh
):
  """An evaluation of more or fewer prompts compiles nothing."""
  program = sampling._generate(model, mesh)
  compiled = program._cache_size()
  for count in (20, 25, 33):
    actual = sampling.respond(
      model, params, (prompts * 7)[:count], jax.random.key(0),
      sampling=params_of(tokenizer), mesh=mesh,
    )  # fmt: skip
    assert len(actual.tokens) == 2 * count
    np.testing.assert_array_equal(actual.tokens[:10], rollout.tokens)
  assert program._cache_size() <= compiled + 1


def test_greedy_answers_take_the_most_likely_token(answer, params):
  actual = answer(samples=1, temperature=0.0)
  logits = twin.logits(params, actual.tokens, actual.segments)
  best = logits[:, -NEW - 1 : -1].argmax(-1)
  mask = np.asarray(actual.response_mask)
  assert mask.sum() > 5
  np.testing.assert_array_equal(actual.tokens[:, -NEW:][mask], best[mask])


def test_an_answer_is_an_example_without_its_padding(rollout):
  for row, (ids, weights) in enumerate(scoring.answers(rollout)):
    real = rollout.segments[row] > 0
    np.testing.assert_array_equal(ids, rollout.tokens[row][real])
    response = int(rollout.response_mask[row].sum())
    np.testing.assert_array_equal(
      weights, np.arange(len(ids)) >= len(ids) - response
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_records_the_log_likelihood(
  answer, model, params, mesh, temperature
):
  """The recorded values equal recomputed ones."""
  actual = answer(temperature=temperature)
  expected = scoring.log_likelihood(
    model, params, scoring.answers(actual), mesh
  )
  recorded = np.where(actual.response_mask, actual.logp, 0).sum(axis=1)
  np.testing.assert_allclose(recorded, expected, atol=1e-4)


def test_an_answer_can_be_judged_behind_another_prompt(
  model, params, rollout, prompts, tokenizer, mesh
):
  swapped = [prompts[(row // 2 + 1) % 5] for row in range(10)]
  other = sampling.with_prompts(rollout, swapped, tokenizer)
  assert sampling.texts(other, tokenizer) == sampling.texts(rollout, tokenizer)
  actual = scoring.log_likelihood(model, params, scoring.answers(other), mesh)
  for row, ids in enumerate(swapped):
    mask = rollout.response_mask[row]
    response = rollout.tokens[row, -NEW:][mask]
    alone = np.concatenate([ids, response])[None]
    logits = twin.logits(params, alone, np.ones_like(alone))[0]
    logp = twin.log_softmax(logits[len(ids) - 1 : -1])
    expected = logp[np.arange(len(response)), response].sum()
    assert actual[row] == pytest.approx(expected, abs=2e-5)


def test_answers_of_a_model_that_is_not_finite_are_refused(
  model, params, prompts, tokenizer, mesh
):
  broken = jax.tree.map(lambda x: x * np.float32(np.nan), params)
  with pytest.raises(UserError) as caught:
    sampling.respond(
      model, broken, prompts, jax.random.key(0),
      sampling=params_of(tokenizer), mesh=mesh,
    )  # fmt: skip
  assert caught.value.code == "not_finite"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_only_drawn_tokens_have_to_be_finite(value):
  logp = np.array([[-1.0, value], [-2.0, -3.0]], np.float32)
  mask = np.array([[True, False], [True, True]])
  sampling.require_finite(logp, mask)
  for drawn in (None, ~mask):
    with pytest.raises(UserError) as caught:
      sampling.require_finite(logp, drawn)
    assert caught.value.code == "not_finite"


def test_each_id_that_stops_a_reply_ends_an_answer(
  model, params, prompts, tokenizer, mesh, rollout
):
  """As in `transformers`, whose generation_config.json may list several."""
  drawn = np.asarray(rollout.tokens)[:, -NEW:].ravel()
  (stop, *_) = (int(i) for i in drawn if tokenizer.decode([i]) in WORDS.split())
  other = copy.copy(tokenizer)
  other.stop_ids = (tokenizer.eos_id, stop)
  answers = sampling.respond(
    model, params, prompts, jax.random.key(0),
    sampling=params_of(other), mesh=mesh,
  )  # fmt: skip
  before = np.asarray(rollout.tokens)[:, -NEW:]
  for row, (ids, mask) in enumerate(
    zip(before, np.asarray(rollout.response_mask), strict=True)
  ):
    ends = np.flatnonzero((ids == stop) & mask)
    count = ends[0] + 1 if len(ends) else mask.sum()
    assert answers.response_mask[row].sum() == count
    assert answers.ended[row] == (rollout.ended[row] or len(ends) > 0)
  shown = sampling.texts(answers, other)
  assert tokenizer.decode([stop]) not in " ".join(shown).split()
