"""PPO's self-checks: rounding passes, and faults do not, in either type."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax import configs, precision
from instructgpt_jax.errors import UserError
from instructgpt_jax.losses import ppo as ppo_losses
from instructgpt_jax.models.heads import LanguageModel, init_params
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.steps import ppo_gaps
from instructgpt_jax.training import ppo_checks
from instructgpt_jax.types import PromptBatch

TYPES = ("float32", "bfloat16")
PROMPT, RESPONSE, BATCH, WORDS = 8, 24, 16, 512
SPREAD = 4.0  # of logits, about that of trained models


def sharpened(model, seed=0):
  """Makes fresh parameters with large layers and wide logits."""
  c = model.config
  params = init_params(model, jax.random.key(seed))
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 6 * x if path[-1].key == "kernel" else x, params
  )
  norm = params["transformer"]["final_norm"]
  norm["scale"] = norm["scale"] * SPREAD / (c.init_std * c.d_model**0.5)
  return params


@functools.cache
def sampled(dtype):
  """Returns model, parameters, a rollout of left-padded prompts and config."""
  c = configs.Model(
    vocab_size=WORDS,
    max_seq_len=48,
    num_layers=3,
    d_model=64,
    num_heads=4,
    dtype=dtype,
  )
  model = LanguageModel(c)
  params = sharpened(model)
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, PROMPT + 1, BATCH)
  mask = np.arange(PROMPT) >= PROMPT - lengths[:, None]
  tokens = np.where(mask, rng.integers(2, WORDS, mask.shape), 0)
  prompts = PromptBatch(
    tokens=jnp.asarray(tokens, jnp.int32),
    mask=jnp.asarray(mask),
    ids=jnp.arange(BATCH),
  )
  rollout = jax.jit(
    functools.partial(
      generate,
      model,
      sampling=SamplingParams(max_new_tokens=RESPONSE, eos_id=1, pad_id=0),
    )
  )(params, prompts, jax.random.key(1))
  return model, params, rollout, configs.PpoExperiment(model=c)


@functools.cache
def compared(dtype, temperature):
  """Returns the compiled `ppo_gaps.measure_gaps`."""
  return jax.jit(
    functools.partial(
      ppo_gaps.measure_gaps,
      model=sampled(dtype)[0],
      temperature=temperature,
      clip_ratio=0.2,
    )
  )


def agree(dtype, *, rollout=None, policy=None, reference=None, temperature=1.0):
  """Runs the start-up check with some parts replaced by others."""
  _, params, honest, settings = sampled(dtype)
  policy = params if policy is None else policy
  return ppo_checks.check_first_rollout(
    compared(dtype, temperature),
    policy,
    {"reference": policy if reference is None else reference},
    honest if rollout is None else rollout,
    settings,
    is_new_run=True,
  )


def code(call, *args, **kwargs):
  with pytest.raises(UserError) as caught:
    call(*args, **kwargs)
  return caught.value.code


@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_passes_and_is_shown(dtype, capsys):
  gaps = agree(dtype)
  assert gaps.decoding.mean > 0
  assert gaps.reference.mean == 0
  assert gaps.spread == pytest.approx(SPREAD, rel=0.2)
  shown = capsys.readouterr().err
  assert dtype in shown and f"{gaps.decoding.mean:.2g} nats" in shown
  assert f"{gaps.decoding.high:.2g}" in shown
  # The unit of the limits is at most 50 times the rounding.
  unit = ppo_checks.rounding_unit(sampled(dtype)[0].config, gaps.spread)
  assert 0.02 * unit < gaps.decoding.mean < unit


def moved_positions(rollout):
  return dataclasses.replace(
    rollout, positions=rollout.positions + (rollout.segments > 0)
  )


def padding_is_seen(rollout):
  return dataclasses.replace(
    rollout, segments=rollout.segments.at[:, :PROMPT].set(1)
  )


def first_token_is_missing(rollout):
  first = jnp.argmax(rollout.segments > 0, axis=1)
  rows = jnp.arange(len(first))
  return dataclasses.replace(
    rollout, segments=rollout.segments.at[rows, first].set(0)
  )


def shifted_logp(rollout):
  return dataclasses.replace(rollout, logp=jnp.roll(rollout.logp, 1, axis=1))


def wrong_last_token(rollout):
  """Shifts one token in 24 by a word's log-probability."""
  return dataclasses.replace(
    rollout, logp=rollout.logp.at[:, -1].set(-np.log(WORDS) - 4)
  )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
  "fault",
  [
    moved_positions,
    padding_is_seen,
    first_token_is_missing,
    shifted_logp,
    wrong_last_token,
  ],
)
def test_a_fault_of_the_rollout_is_noticed(dtype, fault):
  rollout = sampled(dtype)[2]
  assert code(agree, dtype, rollout=fault(rollout)) == "invariant_6"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("temperature", [0.8, 1.25])
def test_another_temperature_is_noticed(dtype, temperature):
  assert code(agree, dtype, temperature=temperature) == "invariant_6"


def thinned(params):
  """Drops one in ten MLP weights, as with dropout left on."""
  rng = np.random.default_rng(0)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      x * (rng.random(x.shape) > 0.1) / 0.9 if path[-1].key == "kernel" else x
    ),
    params,
  )


def trained_further(params):
  return jax.tree.map(lambda x: 1.05 * x, params)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("change", [thinned, trained_further])
def test_another_policy_than_the_one_that_sampled_is_noticed(dtype, change):
  params = sampled(dtype)[1]
  assert code(agree, dtype, policy=change(params)) == "invariant_6"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("change", [thinned, trained_further, None])
def test_another_reference_is_noticed(dtype, change):
  model, params, *_ = sampled(dtype)
  other = sharpened(model, seed=1) if change is None else change(params)
  assert code(agree, dtype, reference=other) == "invariant_3"


@pytest.mark.parametrize("dtype", TYPES)
def test_non_finite_values_are_not_rounding(dtype):
  rollout = sampled(dtype)[2]
  broken = dataclasses.replace(rollout, logp=rollout.logp.at[0, 0].set(jnp.nan))
  assert code(agree, dtype, rollout=broken) == "not_finite"


def first_metrics(dtype, params):
  """Computes the first update's metrics for these policy parameters."""
  model, _, rollout, _ = sampled(dtype)
  logp = ppo_gaps.response_logp(model, params, rollout, 1.0)
  advantages = jax.random.normal(jax.random.key(3), logp.shape)
  _, metrics = ppo_losses.policy_loss(
    logp, rollout.logp, advantages, rollout.response_mask, clip_ratio=0.2
  )
  return jax.device_get(metrics)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_first_update_may_round_and_clip_but_not_be_another_policy(dtype):
  params, settings = sampled(dtype)[1], sampled(dtype)[3]
  gaps = agree(dtype)
  ppo_checks.check_first_update(first_metrics(dtype, params), gaps, settings)
  for change in (thinned, trained_further):
    metrics = first_metrics(dtype, change(params))
    assert (
      code(ppo_checks.check_first_update, metrics, gaps, settings)
      == "invariant_1"
    )


def test_a_clipped_token_of_a_wide_model_is_no_fault():
  """Tokens leave the interval by rounding where logits are very wide."""
  settings = dataclasses.replace(
    configs.PpoExperiment(),
    model=configs.Model(
      num_layers=12, d_model=128, num_heads=4, dtype="bfloat16"
    ),
  )
  gap = ppo_gaps.Gap(mean=0.038, high=0.29, k3=0.0018, outside=0.011)
  gaps = ppo_gaps.Gaps(gap, gap, 7.4)
  healthy = {"ratio_mean": 1.002, "approx_kl": 0.002, "clip_fraction": 0.006}
  ppo_checks.check_first_update(healthy, gaps, settings)
  for name, value in (
    ("ratio_mean", 1.5), ("approx_kl", 0.3), ("ratio_mean", float("nan")),
  ):  # fmt: skip
    changed = healthy | {name: value}
    assert (
      code(ppo_checks.check_first_update, changed, gaps, settings)
      == "invariant_1"
    )


def rounding(monkeypatch, bits, *, obey):
  """Rounds float32 inputs of matmuls, as accelerators do by default."""
  honest = jax.lax.dot_general

  def dot_general(a, b, *args, **kwargs):
    asked = kwargs.get("precision") if obey else None
    if a.dtype == jnp.float32 and asked in (None, jax.lax.Precision.DEFAULT):
      a, b = (jax.lax.reduce_precision(x, 8, bits) for x in (a, b))
    return honest(a, b, *args, **kwargs)

  from jax._src.lax import lax

  monkeypatch.setattr(jax.lax, "dot_general", dot_general)
  monkeypatch.setattr(lax, "dot_general", dot_general)


@pytest.fixture
def fresh_programs():
  """Clears programs that were traced with rounded matmuls."""

  def forget():
    jax.clear_caches()
    compared.cache_clear()

  forget()
  yield
  forget()


@pytest.mark.parametrize("bits", [7])
def test_float32_models_ask_for_float32(monkeypatch, fresh_programs, bits):
  """Devices that follow a matmul's precision then avoid TF32 inputs."""
  model, params, rollout, _ = sampled("float32")
  expected = ppo_gaps.response_logp(model, params, rollout, 1.0)
  jax.clear_caches()
  rounding(monkeypatch, bits, obey=True)
  assert precision.unit_roundoff("float32") == 2.0**-24
  logp = ppo_gaps.response_logp(model, params, rollout, 1.0)
  np.testing.assert_allclose(logp, expected, atol=1e-4)
  agree("float32")


@pytest.mark.parametrize("bits", [10, 7])
def test_the_limits_follow_a_device_that_rounds_anyway(
  monkeypatch, fresh_programs, bits
):
  rounding(monkeypatch, bits, obey=False)
  assert precision.unit_roundoff("float32") == 2.0 ** -(bits + 1)
  gaps = agree("float32")
  assert gaps.decoding.mean > 1e-4
  rollout = moved_positions(sampled("float32")[2])
  assert code(agree, "float32", rollout=rollout) == "invariant_6"


def test_jax_default_matmul_precision_wins():
  assert precision.of("float32") == jax.lax.Precision.HIGHEST
  assert precision.of("bfloat16") is None
  with jax.default_matmul_precision("tensorfloat32"):
    assert precision.of("float32") is None


@pytest.mark.parametrize(
  "changes",
  [
    {"tie_embeddings": False},
    {"tie_embeddings": False, "unembedding_bias": True, "gated_mlp": True},
    {"scan_layers": True, "lora_rank": 2},
  ],
)
def test_every_matmul_of_a_float32_model_is_in_float32(changes):
  """Covers the forward pass, the gradient and decoding."""
  model, _, rollout, _ = sampled("float32")
  model = LanguageModel(dataclasses.replace(model.config, **changes))
  params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  prompts = PromptBatch(
    tokens=rollout.tokens[:, :PROMPT],
    mask=rollout.segments[:, :PROMPT] > 0,
    ids=jnp.arange(BATCH),
  )

  def logits(params):
    rows = rollout.tokens, rollout.segments, rollout.positions
    return model.apply({"params": params}, *rows).sum()

  def decode(params):
    return generate(
      model, params, prompts, jax.random.key(0),
      SamplingParams(max_new_tokens=4, eos_id=1, pad_id=0),
    )  # fmt: skip

  def losses(params):
    return ppo_gaps.response_logp(model, params, rollout, 1.0)

  for function in (jax.grad(logits), decode, losses):
    text = jax.jit(function).lower(params).as_text()
    dots = [x for x in text.splitlines() if "stablehlo.dot_general" in x]
    assert dots
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in dots)
