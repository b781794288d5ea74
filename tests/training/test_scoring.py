"""Scores and log-probabilities of packed texts against the numpy twin."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.training import held_out, scoring
from tests.models import twin


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make_mesh(configs.Mesh())


@pytest.fixture(scope="module")
def examples():
  """Returns 23 texts of 1 to 24 tokens, with weights on some tokens."""
  rng = np.random.default_rng(0)
  texts = []
  for length in [24, 1, *rng.integers(2, 14, 21)]:
    weights = (rng.random(length) < 0.5).astype(np.float32)
    weights[0] = 0
    ids = rng.integers(2, 13, length).astype(np.int32)
    texts.append(scoring.Example(ids, weights))
  return texts


@pytest.mark.parametrize("tokens", [24, 96, 4096])
def test_log_likelihood_is_the_twins(examples, mesh, monkeypatch, tokens):
  """With one row per batch, a partly full last batch, and one batch."""
  monkeypatch.setattr(scoring, "TOKENS", tokens)
  model = LanguageModel(twin.make_config())
  params = twin.make_params(model)
  actual = scoring.log_likelihood(model, params, examples, mesh)
  assert actual.shape == (23,) and actual[1] == 0
  for value, (ids, weights) in zip(actual, examples, strict=True):
    logits = twin.logits(params, ids[None], np.ones((1, len(ids))))[0]
    logp = twin.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
    assert value == pytest.approx(weights[1:] @ logp, abs=1e-4)


def test_scores_are_read_at_the_last_token(examples, mesh):
  model = ScalarModel(twin.make_config())
  params = twin.make_params(model)
  actual = scoring.score(model, params, examples, mesh)
  for value, (ids, _) in zip(actual, examples, strict=True):
    alone = twin.scalars(params, ids[None], np.ones((1, len(ids))))[0, -1]
    assert value == pytest.approx(alone, abs=1e-4)


def test_an_ensemble_scores_each_model_in_turn(examples, mesh):
  """Its models may have different sizes."""
  models = [
    ScalarModel(twin.make_config(num_layers=layers)) for layers in (1, 2, 1)
  ]
  params = [twin.make_params(m, seed=i) for i, m in enumerate(models)]
  singles = np.stack(
    [
      scoring.score(model, p, examples, mesh)
      for model, p in zip(models, params, strict=True)
    ]
  )

  def score(ensemble):
    settings = configs.RewardModels(reward_ensemble=ensemble)
    scorer = held_out.Scorer(tuple(models), tuple(params), settings)
    return scorer.score(examples, mesh)

  np.testing.assert_array_equal(score("worst"), singles.min(axis=0))
  np.testing.assert_allclose(score("mean"), singles.mean(axis=0), atol=1e-5)


def test_a_text_longer_than_the_context_is_refused(examples, mesh):
  model = ScalarModel(twin.make_config())
  ids = np.full(60, 3, np.int32)
  longer = [*examples, scoring.Example(ids, np.ones(60, np.float32))]
  with pytest.raises(UserError, match="60 tokens does not fit a row of 24"):
    scoring.score(model, None, longer, mesh)


def test_little_padding_is_run(examples, mesh, monkeypatch):
  """All texts share rows of max_seq_len tokens."""
  run = []

  def count(params, batch, *, model):
    run.append(batch.tokens.size)
    return np.zeros(batch.tokens.shape)

  monkeypatch.setattr(scoring, "_token_scores", lambda mesh: count)
  monkeypatch.setattr(scoring, "TOKENS", 24)
  model = ScalarModel(twin.make_config())
  scoring.score(model, None, examples, mesh)
  real = sum(len(e.ids) for e in examples)
  assert real <= sum(run) <= 1.1 * real
