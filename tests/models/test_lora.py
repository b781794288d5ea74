"""Adapters: their function, their training and merging."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax import configs
from instructgpt_jax.models import heads, lora, sampling
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.sharding import unbox
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import LanguageBatch
from tests.models import twin

ROWS = np.random.default_rng(3).integers(2, 13, (3, 8)).astype(np.int32)
SEGMENTS = np.array([[1] * 8, [1] * 5 + [0] * 3, [1] * 8], np.int32)
POSITIONS = np.tile(np.arange(8, dtype=np.int32), (3, 1))
BATCH = LanguageBatch(
  tokens=ROWS,
  segments=SEGMENTS,
  positions=POSITIONS,
  weights=SEGMENTS.astype(np.float32),
)
ADAPTERS = dict(lora_rank=3, lora_alpha=5.0)


def adapted(network=LanguageModel, **changes):
  """Makes a network with adapters that are not zero, and its parameters."""
  model = network(twin.make_config(**ADAPTERS, **changes))
  return model, twin.make_params(model)


def plain(model):
  return type(model)(
    configs.Model(**{**vars(model.config), "lora_rank": None, "dropout": 0.0})
  )


SHAPES: list[dict] = [
  {},
  {"scan_layers": True},
  {"lora_layers": "mlp"},
  twin.LLAMA,
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_merged_equals_unmerged(changes):
  model, params = adapted(**changes)
  other = plain(model)
  merged = jax.jit(lora.merge_lora, static_argnums=0)(model.config, params)
  assert jax.tree.map(jnp.shape, merged) == jax.tree.map(
    jnp.shape, unbox(heads.abstract_params(other))
  )
  actual, without = (
    jax.jit(m.apply)({"params": p}, ROWS, SEGMENTS, POSITIONS)
    for m, p in ((model, params), (other, merged))
  )
  real = SEGMENTS > 0
  np.testing.assert_allclose(actual[real], without[real], rtol=1e-4, atol=1e-4)
  # The adapters are no small part of it.
  _, bare = lora.split(other.config, lora.split(model.config, params)[0])
  bare = jax.jit(other.apply)({"params": bare}, ROWS, SEGMENTS, POSITIONS)
  assert np.abs(bare - without)[real].mean() > 0.1


def test_a_merged_kernel_is_the_papers_sum():
  model, params = adapted()
  block = params["transformer"]["blocks_1"]
  merged = lora.merge_lora(model.config, params)["transformer"]["blocks_1"]
  for name, inputs in (("qkv", 1), ("project", 2), ("up", 1), ("down", 1)):
    kernel, down, up = (
      np.asarray(block[name][k], np.float64)
      for k in ("kernel", "lora_a", "lora_b")
    )
    rows = int(np.prod(kernel.shape[:inputs]))
    delta = down.reshape(rows, -1) @ up.reshape(len(up), -1)
    np.testing.assert_allclose(
      merged[name]["kernel"],
      kernel + 5.0 / 3 * delta.reshape(kernel.shape),
      rtol=1e-5,
      atol=1e-6,
    )


def test_fresh_adapters_change_nothing():
  model = LanguageModel(twin.make_config(**ADAPTERS))
  params = heads.init_params(model, jax.random.key(0))
  frozen, trained = lora.split(model.config, params)
  assert lora.merge_trees(frozen, trained).keys() == params.keys()
  for name in ("qkv", "project", "up", "down"):
    layer = trained["transformer"]["blocks_0"][name]
    assert set(layer) == {"lora_a", "lora_b"}
    assert np.abs(layer["lora_a"]).min() > 0 and not np.any(layer["lora_b"])
  whole, bare = (
    m.apply({"params": p}, ROWS, SEGMENTS, POSITIONS)
    for m, p in ((model, params), (plain(model), frozen))
  )
  np.testing.assert_array_equal(whole, bare)


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_only_the_named_layers_have_adapters(part):
  model = LanguageModel(twin.make_config(**ADAPTERS, lora_layers=part))
  _, trained = lora.split(model.config, unbox(heads.abstract_params(model)))
  expected = {"attention": {"qkv", "project"}, "mlp": {"up", "down"}}[part]
  assert set(trained["transformer"]["blocks_1"]) == expected


def test_a_scalar_models_head_is_trained():
  model, params = adapted(ScalarModel)
  frozen, trained = lora.split(model.config, params)
  assert "head" in trained and "head" not in frozen


def test_union_and_split_are_inverse():
  model, params = adapted(ScalarModel, tie_embeddings=False)
  merged = lora.merge_trees(*lora.split(model.config, params))
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, merged, params)


@pytest.mark.parametrize("changes", [{}, twin.LLAMA], ids=str)
def test_decoding_agrees_with_the_full_pass(changes):
  model, params = adapted(**changes)
  prompts = twin.make_prompts(range(3))
  rollout = jax.jit(
    lambda p: sampling.generate(
      model, p, prompts, jax.random.key(0),
      sampling.SamplingParams(max_new_tokens=4, eos_id=1, pad_id=0),
    )
  )(params)  # fmt: skip
  logits = model.apply(
    {"params": params}, rollout.tokens, rollout.segments, rollout.positions
  )
  logp = jax.nn.log_softmax(logits[:, 4:-1])
  taken = jnp.take_along_axis(logp, rollout.tokens[:, 5:, None], -1)[..., 0]
  mask = np.asarray(rollout.response_mask)
  np.testing.assert_allclose(
    rollout.logp[mask], taken[mask], rtol=1e-3, atol=1e-4
  )


def test_a_step_changes_the_adapters_alone_and_lowers_the_loss():
  model = LanguageModel(twin.make_config(**ADAPTERS))
  frozen, trained = lora.split(model.config, twin.make_params(model))
  optimizer = optax.adam(1e-2)
  state = state_lib.new_state(trained, optimizer)
  step = jax.jit(
    lambda s, f: language_step.train_step(
      s, BATCH, f, model=model, optimizer=optimizer, seed=0, microbatch=1
    )
  )
  losses = []
  for _ in range(20):
    state, metrics = step(state, frozen)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.7 * losses[0]
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in moments) == 2 * sum(
    x.size for x in jax.tree.leaves(trained)
  )


def test_no_gradient_of_a_frozen_kernel_is_computed():
  """Such gradients are a third of a step's matmul FLOPs."""
  c = twin.make_config(d_model=64, max_seq_len=64, vocab_size=16, lora_rank=1)
  rows = np.ones((8, 64), np.int32)
  batch = LanguageBatch(
    tokens=rows, segments=rows, positions=rows, weights=rows.astype("f4")
  )
  flops = []
  for model in (LanguageModel(c), plain(LanguageModel(c))):
    frozen, trained = lora.split(model.config, twin.make_params(model))
    gradient = jax.jit(
      functools.partial(language_step.gradients, model, microbatch=0)
    )
    compiled = gradient.lower(trained, batch, frozen).compile()
    cost = compiled.cost_analysis()
    assert cost
    flops.append(cost["flops"])
  assert flops[0] < 0.8 * flops[1]


def test_gradients_are_those_of_the_merged_network():
  """The chain rule gives dA = s · dW · Bᵀ and dB = s · Aᵀ · dW."""
  model, params = adapted()
  other = plain(model)
  frozen, trained = lora.split(model.config, params)
  _, ours_, _ = language_step.gradients(
    model, trained, BATCH, frozen, microbatch=0
  )
  _, whole, _ = language_step.gradients(
    other, lora.merge_lora(model.config, params), BATCH, microbatch=0
  )
  for name in ("qkv", "project", "up", "down"):
    layer = params["transformer"]["blocks_0"][name]
    slope = np.asarray(whole["transformer"]["blocks_0"][name]["kernel"])
    actual = ours_["transformer"]["blocks_0"][name]
    down = np.asarray(layer["lora_a"])
    rows = down.size // down.shape[-1]
    slope = slope.reshape(rows, -1)
    up = np.asarray(layer["lora_b"]).reshape(3, -1)
    for key, expected in (
      ("lora_a", 5 / 3 * slope @ up.T),
      ("lora_b", 5 / 3 * down.reshape(rows, 3).T @ slope),
    ):
      np.testing.assert_allclose(
        np.asarray(actual[key]).reshape(expected.shape), expected, rtol=2e-3,
        atol=2e-5,
      )  # fmt: skip


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("changes", [{}, twin.LLAMA], ids=str)
def test_heads_that_are_zero_stay_zero(changes, rank):
  """Adam scales any gradient but an exact 0 to a full update."""
  plain, wide = (
    LanguageModel(twin.make_config(**changes, lora_rank=rank, head_padding=n))
    for n in (0, 1)
  )
  base_params = twin.make_params(plain)
  if rank:
    fresh = heads.init_params(wide, jax.random.key(0))
    project = fresh["transformer"]["blocks_0"]["project"]["lora_a"]
    assert np.any(project[:2]) and not np.any(project[2:])
  optimizer = optax.adamw(2e-3)
  losses = []
  for model in (plain, wide):
    params = twin.fill_up(base_params, model)
    frozen, trained = lora.split(model.config, params)
    state = state_lib.new_state(trained, optimizer)
    step = jax.jit(
      functools.partial(
        language_step.train_step, model=model, optimizer=optimizer, seed=0
      )
    )
    step_losses = []
    for _ in range(5):
      state, metrics = step(state, BATCH, frozen)
      step_losses.append(float(metrics["loss"]))
    losses.append(step_losses)
    params = lora.merge_trees(frozen, state.params)
  assert losses[0][-1] < losses[0][0] - 0.05
  np.testing.assert_allclose(*losses, rtol=1e-4)
  blocks = params["transformer"]["blocks_0"]
  assert not np.any(blocks["project"]["kernel"][2:])
  layer = blocks["qkv" if "qkv" in blocks else "key_value"]
  assert not np.any(layer["kernel"][:, :, plain.config.kv_heads :])
  if rank:
    assert not np.any(blocks["project"]["lora_a"][2:])
    assert not np.any(layer["lora_b"][:, :, plain.config.kv_heads :])
