"""The language-model step: its loss by a numpy twin, dropout and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax.data import encoding, packing
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import LanguageBatch
from tests.models import twin

EOS, PAD = 1, 0


def make_batch():
  """Makes four packed rows of unequal length, with weights from 0 to 1."""
  rng = np.random.default_rng(3)
  examples = []
  for length in (7, 4, 5, 1, 2, 6):
    prompt, completion = rng.integers(2, 13, length), rng.integers(2, 13, 3)
    completion[-1] = EOS
    hidden = length != 7  # one document is trained from its start
    examples.append(
      encoding.with_loss_weights(prompt, completion, mask_prompt=hidden)
    )
  rows = packing.pack_examples(examples, 12, pad_id=PAD)
  assert rows["tokens"].shape == (4, 12) and rows["segments"].max() == 2
  rows["weights"][0] *= 0.25
  return LanguageBatch(**rows)


@pytest.fixture(scope="module")
def batch():
  return make_batch()


@pytest.fixture(scope="module")
def model():
  return LanguageModel(twin.make_config(num_layers=1))


@pytest.fixture(scope="module")
def params(model):
  return twin.make_params(model)


@pytest.fixture(scope="module")
def gradients(model):
  """Returns a function to (loss, gradients, metrics), compiled per shape."""
  return twin.jit(
    functools.partial(language_step.gradients, model),
    static_argnames="microbatch",
  )


def sums_twin(params, batch):
  """Computes Σ weight · −log p, Σ weight · correct and Σ weight by loops."""
  logits = twin.logits(params, batch.tokens, batch.segments)
  logp = twin.log_softmax(logits)
  nll = correct = total = 0.0
  for b, t in zip(*np.nonzero(batch.weights), strict=True):
    assert batch.segments[b, t] == batch.segments[b, t - 1]
    weight, token = float(batch.weights[b, t]), batch.tokens[b, t]
    nll -= weight * logp[b, t - 1, token]
    correct += weight * (np.argmax(logp[b, t - 1]) == token)
    total += weight
  return nll, correct, total


def test_loss_equals_twin(gradients, params, batch):
  loss, _, metrics = gradients(params, batch, microbatch=0)
  nll, correct, total = sums_twin(params, batch)
  np.testing.assert_allclose(loss, nll / total, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], correct / total, rtol=1e-5)
  assert 0 < correct < total


def test_invariant_07_evaluation_gives_each_tokens_logp_without_dropout(
  params, batch
):
  model = LanguageModel(twin.make_config(num_layers=1, dropout=0.3))
  logp = twin.jit(functools.partial(language_step.token_logp, model=model))(
    params, batch
  )
  exact = twin.log_softmax(twin.logits(params, batch.tokens, batch.segments))
  assert logp.shape == batch.tokens.shape
  for b, t in np.ndindex(logp.shape):
    asked = t > 0 and batch.weights[b, t] > 0
    expected = exact[b, t - 1, batch.tokens[b, t]] if asked else 0.0
    np.testing.assert_allclose(logp[b, t], expected, rtol=1e-4, atol=1e-5)


def same(a, b, tolerance=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=0.1 * tolerance
    ),
    a,
    b,
  )


@pytest.mark.parametrize("microbatch", [1, 2])
def test_invariant_20_microbatches_are_one_batch(
  gradients, params, batch, microbatch
):
  """Rows carry different weight, so a mean of means would differ."""
  totals = batch.weights.sum(axis=1)
  assert totals.max() > 1.5 * totals.min()
  whole = gradients(params, batch, microbatch=0)
  parts = gradients(params, batch, microbatch=microbatch)
  same(whole, parts)
  with pytest.raises(ValueError, match="3 does not divide"):
    gradients(params, batch, microbatch=3)


def test_padding_rows_and_padded_tokens_change_nothing(
  gradients, params, batch
):
  blank = jax.tree.map(np.zeros_like, batch)
  longer = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, blank)
  clean = gradients(params, batch, microbatch=0)
  same(clean, gradients(params, longer, microbatch=0))
  real = batch.segments > 0
  assert not real.all()
  spoiled = LanguageBatch(
    tokens=np.where(real, batch.tokens, 7),
    segments=batch.segments,
    positions=np.where(real, batch.positions, 11),
    weights=batch.weights,
  )
  dirty = gradients(params, spoiled, microbatch=0)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_batch_without_weight_is_harmless(gradients, params, batch):
  nothing = LanguageBatch(
    tokens=batch.tokens,
    segments=batch.segments,
    positions=batch.positions,
    weights=np.zeros_like(batch.weights),
  )
  actual = gradients(params, nothing, microbatch=0)
  for leaf in jax.tree.leaves(actual):
    np.testing.assert_array_equal(leaf, 0)


def test_invariant_08_padding_is_not_end_of_text():
  for ids in ((3, 3), (-1, 5), (5, -1), (-1, -1), (99, 99)):
    made = tokenizer_lib.Tokenizer(10, *ids)
    assert made.pad_id != made.eos_id


def test_invariant_08_end_of_text_is_trained(gradients, params):
  """End-of-text has weight 1, and a step makes it more likely."""
  prompt, reply = np.array([5, 6, 7]), np.array([8, 9, EOS])
  ids, weights = encoding.with_loss_weights(prompt, reply)
  rows = packing.pack_examples([(ids, weights)], 12, pad_id=PAD)
  batch = LanguageBatch(**rows)
  assert batch.weights[0].tolist() == [0, 0, 0, 1, 1, 1] + [0] * 6
  assert batch.tokens[0, 5] == EOS

  def eos_logp(params):
    logits = twin.logits(params, batch.tokens, batch.segments)
    return twin.log_softmax(logits)[0, 4, EOS]

  # Of the three trained tokens, end-of-text alone is kept.
  only_eos = LanguageBatch(
    tokens=batch.tokens,
    segments=batch.segments,
    positions=batch.positions,
    weights=batch.weights * (batch.tokens == EOS),
  )
  loss, grads, _ = gradients(params, only_eos, microbatch=0)
  before = eos_logp(params)
  np.testing.assert_allclose(loss, -before, rtol=1e-5)
  moved = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)
  square = sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(grads))
  np.testing.assert_allclose(eos_logp(moved) - before, 1e-3 * square, rtol=0.1)
  # Padding is another token, and does not affect the loss.
  assert not batch.weights[batch.tokens == PAD].any()


@pytest.fixture(scope="module")
def leaky():
  """Returns a step with dropout, on two equal rows."""
  model = LanguageModel(twin.make_config(num_layers=1, dropout=0.3))
  row = jax.tree.map(lambda x: np.repeat(x[1:2], 2, axis=0), make_batch())
  optimizer = optax.sgd(0.0)
  step = twin.jit(
    functools.partial(
      language_step.train_step, model=model, optimizer=optimizer, seed=4
    ),
    static_argnames="microbatch",
  )
  state = state_lib.new_state(twin.make_params(model), optimizer)
  return model, row, state, step


def at_step(state, step):
  return state_lib.TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=state.params,
    opt_state=state.opt_state,
  )


def test_dropout_depends_on_the_step_and_repeats(leaky):
  _, row, state, step = leaky
  losses = [
    float(step(at_step(state, i), row, microbatch=1)[1]["loss"])
    for i in (0, 1, 2, 0)
  ]
  assert len(set(losses)) == 3
  assert losses[0] == losses[3]


def test_each_microbatch_has_separate_dropout(leaky):
  """The loss is the mean over keys fold_in(fold_in(key(seed), step), i)."""
  model, row, state, step = leaky
  actual = step(at_step(state, 5), row, microbatch=1)[1]["loss"]
  one = jax.tree.map(lambda x: x[:1], row)
  key = jax.random.fold_in(jax.random.key(4), 5)
  loss = twin.jit(
    lambda key: language_step.loss_and_metrics(
      model, state.params, one, one.weights.sum(), dropout_key=key
    )[0]
  )
  first, second = (loss(jax.random.fold_in(key, i)) for i in range(2))
  assert abs(first - second) > 1e-3
  np.testing.assert_allclose(actual, (first + second) / 2, rtol=1e-5)


def test_train_step_is_one_update_with_the_gradients(
  model, params, batch, gradients
):
  optimizer = optax.sgd(0.5)
  state = state_lib.new_state(params, optimizer)
  state, metrics = twin.jit(
    functools.partial(
      language_step.train_step, model=model, optimizer=optimizer, seed=0
    )
  )(state, batch)
  loss, grads, _ = gradients(params, batch, microbatch=0)
  same(state.params, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads))
  assert state.step == 1
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  assert metrics["tokens"] == (batch.segments > 0).sum()
  square = sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(grads))
  np.testing.assert_allclose(metrics["grad_norm"], square**0.5, rtol=1e-5)
