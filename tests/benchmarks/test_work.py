"""The timed work equals that of the peers, and batches contain it all."""

import dataclasses
import functools
import importlib.util
import itertools
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import ours, work
from instructgpt_jax.models import heads
from instructgpt_jax.models.heads import ScalarModel
from instructgpt_jax.steps import reward

HARNESS = pathlib.Path(__file__).parents[3] / "shared/peers/work.py"
BOTH = pytest.mark.parametrize("model", ["S", "M"])


@pytest.fixture(scope="module")
def theirs():
  if not HARNESS.exists():
    pytest.skip("the peers' harness is not on this machine")
  spec = importlib.util.spec_from_file_location("peers_work", HARNESS)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@BOTH
@pytest.mark.parametrize("index", [0, 7])
def test_the_tokens_are_theirs(theirs, model, index):
  tokens, prompts = work.sft_batch(model, index)
  expected = theirs.sft_batch(model, index)
  np.testing.assert_array_equal(tokens, expected["input_ids"])
  np.testing.assert_array_equal(prompts, expected["prompt_len"])
  result, expected = work.rankings(model, index), theirs.rm_batch(model, index)
  np.testing.assert_array_equal(result.prompts, expected["seqs"][:, 0, :128])
  np.testing.assert_array_equal(
    result.completions, expected["seqs"][:, :, 128:]
  )
  np.testing.assert_array_equal(result.ranks, 1 + expected["rank"])
  for name in ("generate", "ppo"):
    for a, b in zip(
      work.prompts(model, index, name),
      theirs.prompts(model, index, name),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)


@BOTH
@pytest.mark.parametrize(
  "name, same",
  [("sft", "sft"), ("reward", "rm"), ("generate", "generate"), ("ppo", "ppo")],
)
def test_operations_and_units_are_counted_alike(theirs, model, name, same):
  result, expected = work.operations(name, model), theirs.FLOPS[same](model)
  assert result == (expected["core"], expected["full"])
  assert work.units(name, model) == theirs.units(same, model)


@BOTH
def test_the_models_are_theirs(theirs, model):
  network = heads.LanguageModel(work.MODELS[model])
  shapes = jax.tree.leaves(heads.abstract_params(network))
  count = sum(int(np.prod(x.shape)) for x in shapes)
  assert count == theirs.n_params(theirs.MODELS[model])


def test_the_loss_is_on_the_response():
  batch = ours.language_batch("S", 0)
  tokens, prompts = work.sft_batch("S", 0)
  np.testing.assert_array_equal(batch.tokens, tokens)
  np.testing.assert_array_equal(np.asarray(batch.weights).sum(1), 256 - prompts)
  assert not np.asarray(batch.weights)[0, : prompts[0]].any()


def test_layouts_of_a_ranking_score_alike():
  """A shared prompt, separate rows and all pairs compare the same."""
  network = ScalarModel(
    dataclasses.replace(work.MODELS["tiny"], dtype="float32")
  )
  fresh = jax.jit(heads.init_params, static_argnums=0)
  params = fresh(network, jax.random.key(0))
  score = jax.jit(functools.partial(reward.score_rankings, network))
  result = work.rankings("tiny", 3)
  shared, rows, pairs = (
    np.asarray(score(params, batch))[:, 0]
    for batch in (
      ours.ranking_batch(result),
      ours.ranking_batch(result, rows=work.COMPLETIONS),
      ours.ranking_batch(work.pairs(result), rows=2),
    )
  )
  np.testing.assert_allclose(shared, rows, atol=1e-5)
  assert np.ptp(shared, axis=1).min() > 1e-3  # no two alike by chance
  assert pairs.shape == (12, 2) and work.pairs(result).ranks.shape == (12, 2)
  chosen = list(itertools.combinations(range(work.COMPLETIONS), 2))
  for p in range(work.SHAPES["tiny"].prompts):
    for i, (a, b) in enumerate(chosen):
      np.testing.assert_allclose(pairs[6 * p + i], rows[p, [a, b]], atol=1e-5)
      np.testing.assert_array_equal(
        work.pairs(result).ranks[6 * p + i], result.ranks[p, [a, b]]
      )
