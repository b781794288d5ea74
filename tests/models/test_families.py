"""Invariances of decoders of other families."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.models import rope
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.models.kernels import blocked
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.steps import language
from instructgpt_jax.types import LanguageBatch
from tests.models import twin

# Layers of two kinds, grouped heads, norms everywhere, caps: as in Gemma.
ALL = twin.make_config(
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  d_ff=20,
  gated_mlp=True,
  activation="gelu",
  norm="gemma_rms",
  block="sandwich",
  qkv_bias=False,
  out_bias=False,
  mlp_bias=False,
  qk_norm=True,
  query_pre_attn_scalar=5.0,
  attn_logit_softcap=2.0,
  final_logit_softcap=3.0,
  scale_embeddings=True,
  pos_emb="rope",
  rope_local_theta=50.0,
  sliding_window=3,
  sliding_window_pattern="wf",
  vocab_padding=2,
)
# One norm for both halves, an unembedding's bias: as in GPT-J.
OTHER = twin.make_config(
  block="parallel_one_norm",
  qkv_bias=False,
  out_bias=False,
  pos_emb="rope",
  rope_dim=4,
  rope_interleaved=True,
  tie_embeddings=False,
  unembedding_bias=True,
)


def answers(model, params, **options):
  run = twin.jit(
    lambda p, prompts: generate(
      model,
      p,
      prompts,
      jax.random.key(4),
      SamplingParams(max_new_tokens=9, eos_id=1, pad_id=0, **options),
    )
  )
  return run(params, twin.make_prompts())


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("config", [ALL, OTHER], ids=["all", "other"])
def test_query_positions_select_outputs_of_all_positions(
  config, scan, few, monkeypatch
):
  """Positions may repeat, in any order; gradients agree too."""
  monkeypatch.setattr(blocked, "fits_one_block", lambda queries, length: few)
  model = ScalarModel(dataclasses.replace(config, scan_layers=scan))
  params = twin.make_params(ScalarModel(config))
  params = twin.stack_layers(params) if scan else params
  rng = np.random.default_rng(3)
  tokens = rng.integers(0, 13, (2, 9))
  segments = np.array([[1] * 4 + [2] * 5, [0] * 2 + [1] * 7])
  positions = np.array([[*range(4), *range(5)], [0, 0, *range(7)]])
  query_positions = np.array([[8, 3, 3], [2, 8, 5]])

  @twin.jit
  def both(params):
    def loss(params, query_positions, taken):
      actual = model.apply(
        {"params": params},
        tokens,
        segments,
        positions,
        query_positions=query_positions,
      )
      actual = jnp.take_along_axis(actual, taken, axis=1)
      return (actual * jnp.arange(1, 4)).sum(), actual

    gradient = jax.grad(loss, has_aux=True)
    every = np.tile(np.arange(3), (2, 1))
    return gradient(params, None, query_positions), gradient(
      params, query_positions, every
    )

  expected, actual = both(params)
  assert np.std(actual[1]) > 0.1
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
    actual,
    expected,
  )


@pytest.mark.parametrize("config", [ALL, OTHER], ids=["all", "other"])
def test_invariant_06_of_other_families(config):
  """Slots and scans do not matter; the full pass agrees with the cache."""
  model = LanguageModel(config)
  params = twin.make_params(model)
  rollout = answers(model, params)
  assert (rollout.tokens < config.vocab_size).all()
  scanned = LanguageModel(dataclasses.replace(config, scan_layers=True))
  for other in (
    answers(model, params, slots=3),
    answers(scanned, twin.stack_layers(params)),
  ):
    np.testing.assert_array_equal(other.tokens, rollout.tokens)
    np.testing.assert_allclose(other.logp, rollout.logp, atol=1e-5)
  logits = twin.jit(model.apply)(
    {"params": params}, rollout.tokens, rollout.segments, rollout.positions
  )
  logp = jax.nn.log_softmax(logits)[:, 4:-1]
  logp = jnp.take_along_axis(logp, rollout.tokens[:, 5:, None], axis=2)[..., 0]
  real = np.asarray(rollout.response_mask)
  np.testing.assert_allclose(
    np.asarray(rollout.logp)[real], logp[real], atol=1e-5
  )


@pytest.mark.parametrize("config", [ALL, OTHER], ids=["all", "other"])
def test_losses_take_the_logits_that_are_predicted(config):
  """Losses from hidden states equal those from logits, with gradients."""
  model = LanguageModel(config)
  params = twin.make_params(model)
  rng = np.random.default_rng(0)
  batch = LanguageBatch(
    tokens=rng.integers(0, 13, (2, 8)).astype(np.int32),
    segments=np.ones((2, 8), np.int32),
    positions=np.tile(np.arange(8, dtype=np.int32), (2, 1)),
    weights=np.ones((2, 8), np.float32),
  )

  def plain(p):
    logits = model.apply(
      {"params": p}, batch.tokens, batch.segments, batch.positions
    )
    logp = jax.nn.log_softmax(logits)[:, :-1]
    return -jnp.take_along_axis(logp, batch.tokens[:, 1:, None], 2).mean()

  remat = LanguageModel(dataclasses.replace(config, remat="full"))
  expected = twin.jit(jax.value_and_grad(plain))(params)
  actual = twin.jit(
    lambda p: language.gradients(remat, p, batch, microbatch=0)[:2]
  )(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3),
    actual,
    expected,
  )
  logp = twin.jit(lambda p: language.token_logp(p, batch, model=model))(params)
  assert -logp[:, 1:].mean() == pytest.approx(float(expected[0]), abs=1e-5)


@pytest.mark.parametrize("pairs", [False, True])
def test_rotary_scores_depend_on_the_distance_alone(pairs):
  """RoPE multiplies each pair, as a complex number, by e^(i · angle)."""
  c = twin.make_config(pos_emb="rope", rope_dim=6, rope_theta=30.0)
  rng = np.random.default_rng(1)
  x = rng.normal(size=(1, 2, 5, 8)).astype(np.float32)
  positions = np.array([[0, 3, 4, 11, 7]])
  actual = rope.apply_rope(
    jnp.asarray(x), rope.rope_cos_sin(c, jnp.asarray(positions), False), pairs
  )
  at = [(0, 1), (2, 3), (4, 5)] if pairs else [(0, 3), (1, 4), (2, 5)]
  for i, (a, b) in enumerate(at):
    angle = positions[:, None] * 30.0 ** (-2 * i / 6)
    expected = (x[..., a] + 1j * x[..., b]) * np.exp(1j * angle)
    np.testing.assert_allclose(actual[..., a], expected.real, atol=1e-5)
    np.testing.assert_allclose(actual[..., b], expected.imag, atol=1e-5)
  np.testing.assert_array_equal(actual[..., 6:], x[..., 6:])
