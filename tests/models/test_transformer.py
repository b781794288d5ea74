"""The decoder and its heads against a numpy twin, and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax import sharding
from instructgpt_jax.models import heads
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from tests.models import twin

# Two documents and padding; one document and padding before it; no padding.
SEGMENTS = np.array(
  [[1, 1, 1, 1, 2, 2, 2, 0], [0, 0, 0, 1, 1, 1, 1, 1], [1] * 8], np.int32
)
POSITIONS = np.array(
  [[0, 1, 2, 3, 0, 1, 2, 0], [0, 0, 0, 0, 1, 2, 3, 4], range(8)], np.int32
)
TOKENS = np.random.default_rng(7).integers(0, 13, SEGMENTS.shape)


@pytest.fixture(scope="module")
def language():
  model = LanguageModel(twin.make_config())
  return model, twin.make_params(model)


@pytest.fixture(scope="module")
def run(language):
  """Returns the unrolled model's logits, compiled once per shape."""
  model, params = language
  apply = twin.jit(lambda *rows: model.apply({"params": params}, *rows))
  return lambda *rows: np.asarray(apply(*rows))


def close(actual, expected, tolerance=1e-4):
  """Asserts that values are equal on real tokens, and that there are any."""
  real = ~np.isnan(expected)
  assert real.any()
  np.testing.assert_allclose(
    np.asarray(actual)[real], expected[real], rtol=tolerance, atol=tolerance
  )


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_equals_twin(tied):
  model = LanguageModel(twin.make_config(tie_embeddings=tied))
  params = twin.make_params(model)
  assert ("unembedding" in params) == (not tied)
  actual = twin.jit(model.apply)(
    {"params": params}, TOKENS, SEGMENTS, POSITIONS
  )
  assert actual.shape == (3, 8, 13) and actual.dtype == jnp.float32
  expected = twin.logits(params, TOKENS, SEGMENTS)
  assert np.nanstd(expected) > 1
  close(actual, expected)


def test_scalar_model_equals_twin():
  model = ScalarModel(twin.make_config(mlp_ratio=2, num_heads=4))
  params = twin.make_params(model)
  actual = twin.jit(model.apply)(
    {"params": params}, TOKENS, SEGMENTS, POSITIONS
  )
  assert actual.shape == (3, 8) and actual.dtype == jnp.float32
  close(actual, twin.scalars(params, TOKENS, SEGMENTS))


def test_scanned_layers_are_the_same_function(run, language):
  _, params = language
  model = LanguageModel(twin.make_config(scan_layers=True))
  stacked = twin.stack_layers(params)
  shapes = jax.tree.map(jnp.shape, heads.abstract_params(model))
  assert jax.tree.map(jnp.shape, stacked) == sharding.unbox(shapes)
  actual = twin.jit(model.apply)(
    {"params": stacked}, TOKENS, SEGMENTS, POSITIONS
  )
  np.testing.assert_allclose(
    actual, run(TOKENS, SEGMENTS, POSITIONS), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_saves_memory_and_keeps_gradients(scan, language):
  _, params = language
  if scan:
    params = twin.stack_layers(params)
  saved, gradients = {}, {}
  for remat in ("none", "dots", "full"):
    model = LanguageModel(twin.make_config(scan_layers=scan, remat=remat))

    def loss(p, model=model):
      outputs = model.apply({"params": p}, TOKENS, SEGMENTS, POSITIONS)
      return jnp.mean(jnp.square(outputs))

    backward = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
    saved[remat] = sum(x.size for x in jax.tree.leaves(backward))
    if not scan or remat != "dots":  # one compilation less
      gradients[remat] = twin.jit(jax.grad(loss))(params)
  assert saved["full"] < saved["dots"] < saved["none"], saved
  for remat in gradients:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      gradients["none"],
      gradients[remat],
    )


def test_bfloat16_is_for_activations_only(run, language):
  _, params = language
  model = LanguageModel(twin.make_config(dtype="bfloat16"))
  fresh = sharding.unbox(heads.abstract_params(model))
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
  hidden, logits = twin.jit(
    lambda p: (
      model.apply({"params": p}, TOKENS, SEGMENTS, POSITIONS, method="hidden"),
      model.apply({"params": p}, TOKENS, SEGMENTS, POSITIONS),
    )
  )(params)
  assert hidden.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  exact = run(TOKENS, SEGMENTS, POSITIONS)
  error = np.abs(logits - exact)[SEGMENTS > 0]
  assert 0 < error.max() < 0.03 * np.abs(exact).max()


def test_bfloat16_scalars_are_float32():
  model = ScalarModel(twin.make_config(dtype="bfloat16"))
  params = twin.make_params(model)
  actual = twin.jit(model.apply)(
    {"params": params}, TOKENS, SEGMENTS, POSITIONS
  )
  assert actual.dtype == jnp.float32
  coarse = actual.astype(jnp.bfloat16).astype(jnp.float32)
  assert (actual != coarse).any()
  close(actual, twin.scalars(params, TOKENS, SEGMENTS), 0.1)


def test_packed_documents_equal_separate_rows(run):
  packed = run(TOKENS, SEGMENTS, POSITIONS)
  alone = np.zeros((2, 8), np.int32)
  alone[0, :4], alone[1, :3] = TOKENS[0, :4], TOKENS[0, 4:7]
  mask = np.array([[1] * 4 + [0] * 4, [1] * 3 + [0] * 5], np.int32)
  separate = run(
    np.concatenate([alone, alone[:1]]),
    np.concatenate([mask, mask[:1]]),
    np.concatenate([np.tile(range(8), (2, 1)), POSITIONS[:1]]),
  )
  np.testing.assert_allclose(
    packed[0, :4], separate[0, :4], rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(
    packed[0, 4:7], separate[1, :3], rtol=1e-5, atol=1e-5
  )


def test_all_segments_attend_to_the_shared_prefix(run):
  """Two documents that share a prefix equal each with a separate prefix."""
  ids = TOKENS[2]
  marks = np.array([[0, -1, -1, -1, 1, 1, 2, 2]], np.int32)
  actual = run(ids[None], marks, np.array([[9, 0, 1, 2, 3, 4, 3, 4]]))[0]
  for at in (slice(4, 6), slice(6, 8)):
    row = np.concatenate([ids[1:4], ids[at]])[None]
    alone = run(row, np.ones_like(row, np.int32), np.arange(5)[None])[0]
    np.testing.assert_allclose(actual[1:4], alone[:3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual[at], alone[3:], rtol=1e-5, atol=1e-5)


def test_invariant_05_padding_on_either_side_changes_no_logit(run):
  """Puts a row of 5 tokens at every offset in 8 positions."""
  ids = TOKENS[1, 3:]
  alone = run(ids[None], np.ones((1, 5), np.int32), np.arange(5)[None])[0]
  for left in range(4):
    mask = np.zeros((1, 8), np.int32)
    mask[0, left : left + 5] = 1
    tokens = np.zeros((1, 8), np.int64)
    tokens[mask > 0] = ids
    positions = heads.positions_of(mask)
    actual = run(tokens, mask, positions)[0, left : left + 5]
    np.testing.assert_allclose(actual, alone, rtol=1e-5, atol=1e-5)


def test_invariant_05_masked_tokens_change_nothing(run):
  real = SEGMENTS > 0
  clean = run(TOKENS, SEGMENTS, POSITIONS)
  spoiled = np.where(real, TOKENS, (TOKENS + 5) % 13)
  elsewhere = np.where(real, POSITIONS, 23)
  dirty = run(spoiled, SEGMENTS, elsewhere)
  np.testing.assert_array_equal(clean[real], dirty[real])
  assert (clean[~real] != dirty[~real]).any()


def test_invariant_05_positions_are_cumsum_of_the_mask_minus_the_mask():
  mask = np.array([[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1]])
  expected = [[0, 0, 0, 1, 2, 3], [0, 1, 2, 2, 2, 2], [0, 1, 1, 2, 3, 3]]
  for kind in (bool, np.int32):
    actual = heads.positions_of(mask.astype(kind))
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("scan", [False, True])
def test_invariant_07_dropout_is_off_unless_asked_for(scan, language):
  _, params = language
  params = twin.stack_layers(params) if scan else params
  plain, leaky = (
    LanguageModel(twin.make_config(dropout=rate, scan_layers=scan))
    for rate in (0.0, 0.5)
  )

  @twin.jit
  def both(key):
    rows = {"params": params}, TOKENS, SEGMENTS, POSITIONS
    dropped = leaky.apply(*rows, deterministic=False, rngs={"dropout": key})
    return plain.apply(*rows), leaky.apply(*rows), dropped

  off, default, dropped = both(jax.random.key(0))
  np.testing.assert_array_equal(off, default)
  assert np.abs(dropped - off)[SEGMENTS > 0].min(axis=-1).mean() > 1e-3
  np.testing.assert_array_equal(dropped, both(jax.random.key(0))[2])
  assert (dropped != both(jax.random.key(1))[2]).any()


def spread(x):
  return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


@pytest.mark.parametrize("scan", [False, True])
def test_fresh_kernels_have_the_configs_deviation(scan):
  """At least 10,000 draws a kernel: 5 % is seven deviations or more."""
  c = twin.make_config(
    vocab_size=200,
    d_model=64,
    max_seq_len=200,
    num_layers=3,
    init_std=0.05,
    tie_embeddings=False,
    scan_layers=scan,
  )
  params = twin.jit(lambda key: heads.init_params(LanguageModel(c), key))(
    jax.random.key(3)
  )
  decoder = params["transformer"]
  if scan:
    blocks = [
      jax.tree.map(lambda x, i=i: x[i], decoder["blocks"]) for i in range(3)
    ]
  else:
    blocks = [decoder[f"blocks_{i}"] for i in range(3)]
  residual = 0.05 / 6**0.5
  for kernels, expected in (
    ([decoder["embedding"]["embedding"]], 0.05),
    ([decoder["position_embedding"]["embedding"]], 0.025),
    ([params["unembedding"]["kernel"]], 0.05),
    ([b["qkv"]["kernel"] for b in blocks], 0.05),
    ([b["up"]["kernel"] for b in blocks], 0.05),
    ([b["project"]["kernel"] for b in blocks], residual),
    ([b["down"]["kernel"] for b in blocks], residual),
  ):
    both = np.concatenate([np.ravel(k) for k in kernels])
    assert both.size > 10_000
    assert abs(spread(both) / expected - 1) < 0.05
    assert abs(both.mean()) < 5 * expected / both.size**0.5
  # Layers do not share their draws.
  first, second = (np.ravel(b["up"]["kernel"]) for b in blocks[:2])
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
  for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
    if path[-1].key == "bias":
      np.testing.assert_array_equal(x, 0)
    if path[-1].key == "scale":
      np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize("width", [16, 7])
def test_sinusoid_positions(width):
  """Each rate has a sine and a cosine, from fast to slow."""
  c = twin.make_config(
    d_model=width,
    num_heads=1,
    max_seq_len=24,
    position_init="sinusoid",
    init_std=0.1,
  )
  actual = twin.jit(
    lambda: heads.init_params(LanguageModel(c), jax.random.key(0))[
      "transformer"
    ]["position_embedding"]["embedding"]
  )()
  half = (width + 1) // 2
  for position in range(24):
    for i in range(width):
      rate = np.pi / 2 * 24.0 ** -((i % half) / half)
      wave = np.sin if i < half else np.cos
      expected = 0.1 * wave(position * rate)
      np.testing.assert_allclose(actual[position, i], expected, atol=1e-6)


@pytest.mark.parametrize("width, seeds", [(8, 4096), (256, 128)])
def test_invariant_27_fresh_heads_are_normal_with_bias_zero(width, seeds):
  """Variance is 1 / (D + 1); 32,768 draws distinguish 8 from 9."""
  model = ScalarModel(twin.make_config(d_model=width, num_layers=1))
  head = twin.jit(jax.vmap(lambda key: heads.init_params(model, key)["head"]))(
    jax.random.split(jax.random.key(5), seeds)
  )
  np.testing.assert_array_equal(head["bias"], 0)
  draws = np.ravel(head["kernel"])
  assert draws.size == 32_768
  assert abs(spread(draws) * (width + 1) ** 0.5 - 1) < 0.02
  assert abs(draws.mean()) < 4 * spread(draws) / draws.size**0.5
  kurtosis = np.mean(draws**4) / spread(draws) ** 4
  assert abs(kurtosis - 3) < 0.15


def test_scalar_from_language_keeps_the_decoder(language):
  model, params = language
  scalar_model = ScalarModel(model.config)
  fresh = twin.make_params(scalar_model, seed=9)
  actual = heads.scalar_from_language(params, fresh)
  assert jax.tree.structure(actual) == jax.tree.structure(fresh)
  for name, source in (("transformer", params), ("head", fresh)):
    jax.tree.map(np.testing.assert_array_equal, actual[name], source[name])
  scalars = twin.jit(scalar_model.apply)(
    {"params": actual}, TOKENS, SEGMENTS, POSITIONS
  )
  hidden = twin.decoder(params, TOKENS, SEGMENTS)
  expected = hidden @ fresh["head"]["kernel"] + fresh["head"]["bias"]
  close(scalars, expected[..., 0])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", [LanguageModel, ScalarModel])
def test_every_parameter_names_its_axes(kind, scan):
  model = kind(twin.make_config(scan_layers=scan, tie_embeddings=False))
  boxed = heads.abstract_params(model)
  axes = sharding.logical_axes(boxed)
  flat = jax.tree_util.tree_flatten_with_path(sharding.unbox(boxed))[0]
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
    for path, x in flat
  }
  assert set(axes) == set(shapes)
  for path, names in axes.items():
    assert len(names) == len(shapes[path]), path
    assert set(names) - {None} <= set(sharding.RULES), path
    assert (names[0] == "layers") == ("/blocks/" in path), path
