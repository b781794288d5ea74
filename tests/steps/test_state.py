"""The optimiser against numpy, accumulation, angles and fingerprints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.steps import state as state_lib


def make_tree(rng):
  shapes = {
    "embed": {"embedding": (5, 3)},
    "block": {"kernel": (3, 4), "bias": (4,)},
    "norm": {"scale": (3,), "bias": (3,)},
  }
  return jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def rate(c, total, step):
  """The learning rate of update `step`, counted from 0."""
  if step < c.warmup_steps:
    share = step / c.warmup_steps
    return c.learning_rate * (c.warmup_init * (1 - share) + share)
  if c.schedule == "constant":
    return c.learning_rate
  done = min((step - c.warmup_steps) / (total - c.warmup_steps), 1.0)
  wave = 0.5 * (1 + np.cos(np.pi * done))
  return c.learning_rate * (c.final_fraction + (1 - c.final_fraction) * wave)


SCHEDULES = [
  dict(schedule="cosine", final_fraction=0.1),
  dict(schedule="cosine", final_fraction=0.0, warmup_steps=3),
  dict(schedule="constant", warmup_steps=4, warmup_init=0.1),
  dict(schedule="constant"),
]


@pytest.mark.parametrize("options", SCHEDULES)
def test_schedule_equals_twin(options):
  c = configs.Optimizer(learning_rate=0.01, **options)
  found = state_lib.learning_rate(c, 10, np.arange(15))
  expected = [rate(c, 10, step) for step in range(15)]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_schedule_known_answers():
  c = configs.Optimizer(
    learning_rate=1.0, final_fraction=0.1, warmup_steps=2, warmup_init=0.5
  )
  found = state_lib.learning_rate(c, 10, np.array([0, 1, 2, 6, 10, 99]))
  np.testing.assert_allclose(found, [0.5, 0.75, 1, 0.55, 0.1, 0.1], rtol=1e-6)


def test_a_warm_up_in_iterations_is_for_ppo_alone():
  c = configs.Optimizer(warmup_steps=-1)
  for begin in (
    lambda: state_lib.schedule(c, 10),
    lambda: state_lib.make_optimizer(c, 10).init({}),
  ):
    with pytest.raises(UserError) as caught:
      begin()
    assert caught.value.code == "warmup_outside_ppo"
    assert caught.value.field == "optimizer.warmup_steps"


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.992, 0.999999])
def test_an_average_holds_no_share_of_its_start(decay):
  rng = np.random.default_rng(0)
  points = rng.normal(size=(200, 3)).astype(np.float32)
  move = jax.jit(state_lib.update_ema)
  average = {"x": jnp.full(3, 1e3)}  # what it began as
  for count, point in enumerate(points, 1):
    average = move(average, {"x": point}, jnp.float32(decay), jnp.int32(count))
    weights = decay ** np.arange(count - 1.0, -1, -1)
    expected = weights @ points[:count] / weights.sum()
    np.testing.assert_allclose(average["x"], expected, rtol=0, atol=2e-3)
  plain = decay * average["x"] + (1 - decay) * points[0]
  actual = move(average, {"x": points[0]}, jnp.float32(decay), jnp.int32(10**7))
  np.testing.assert_allclose(actual["x"], plain, atol=1e-5)


def adam_twin(c, total, params, gradients):
  """Adam in float64: ε beside the root, decay of matrices, clipping first."""
  flat, structure = jax.tree_util.tree_flatten_with_path(params)
  decayed = [path[-1].key in ("kernel", "embedding") for path, _ in flat]
  x = [np.asarray(leaf, np.float64) for _, leaf in flat]
  first, second = ([np.zeros_like(leaf) for leaf in x] for _ in range(2))
  for step, tree in enumerate(gradients):
    g = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    norm = np.sqrt(sum((leaf**2).sum() for leaf in g))
    if c.clip_norm and norm > c.clip_norm:
      g = [leaf * c.clip_norm / norm for leaf in g]
    for i, leaf in enumerate(g):
      first[i] = c.b1 * first[i] + (1 - c.b1) * leaf
      second[i] = c.b2 * second[i] + (1 - c.b2) * leaf**2
      mean = first[i] / (1 - c.b1 ** (step + 1))
      root = np.sqrt(second[i] / (1 - c.b2 ** (step + 1)))
      move = mean / (root + c.eps)
      if decayed[i]:
        move = move + c.weight_decay * x[i]
      x[i] = x[i] - rate(c, total, step) * move
  return jax.tree.unflatten(structure, x)


@pytest.mark.parametrize(
  "options",
  [
    dict(eps=0.05, clip_norm=0.0),  # ε large enough to show where it stands
    dict(eps=1e-8, clip_norm=3.0, weight_decay=0.1, **SCHEDULES[1]),
    dict(eps=1e-5, clip_norm=1.0, b1=0.8, b2=0.99, **SCHEDULES[2]),
  ],
)
def test_invariant_23_optimiser_equals_twin(options):
  """Gradients both above and below the limit of the norm."""
  c = configs.Optimizer(learning_rate=0.1, **options)
  rng = np.random.default_rng(1)
  params = make_tree(rng)
  gradients = [
    jax.tree.map(lambda x, s=scale: np.float32(s) * x, make_tree(rng))
    for scale in (1.0, 0.01, 5.0, 0.1, 1e-3)
  ]
  optimizer = state_lib.make_optimizer(c, 8)
  state = state_lib.new_state(params, optimizer)
  apply = jax.jit(lambda s, g: state_lib.apply_gradients(s, g, optimizer))
  for step, g in enumerate(gradients):
    assert state.step == step and state.step.dtype == jnp.int32
    state = apply(state, g)
  assert state.step == 5
  expected = adam_twin(c, 8, params, gradients)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    state.params,
    expected,
  )


def test_invariant_23_epsilon_is_outside_the_root():
  """One step on a gradient as large as ε halves the move; inside, it is g/√."""
  c = configs.Optimizer(
    learning_rate=1.0, eps=0.01, clip_norm=0.0, schedule="constant"
  )
  optimizer = state_lib.make_optimizer(c, 2)
  state = state_lib.new_state({"bias": jnp.zeros(1)}, optimizer)
  state = state_lib.apply_gradients(
    state, {"bias": jnp.full(1, 0.01)}, optimizer
  )
  np.testing.assert_allclose(state.params["bias"], -0.5, rtol=1e-5)


@pytest.mark.parametrize("microbatch", [0, 1, 2, 3, 6, 9])
def test_invariant_20_microbatches_add_up_and_each_row_counts_once(microbatch):
  batch = {"x": np.arange(1.0, 7.0, dtype=np.float32), "row": np.arange(6)}

  def loss_fn(params, part, index):
    assert index.dtype == jnp.int32
    seen = jnp.zeros(6).at[part["row"]].add(1.0)
    # A loss that is not linear in its parameters.
    loss = jnp.sum(jnp.square(params * part["x"] - 1)) / 6
    return loss, {"seen": seen, "parts": jnp.ones(())}

  loss, grads, metrics = jax.jit(
    lambda p: state_lib.accumulate(loss_fn, p, batch, microbatch)
  )(jnp.float32(0.5))
  x = np.arange(1.0, 7.0)
  np.testing.assert_allclose(loss, np.mean((0.5 * x - 1) ** 2), rtol=1e-6)
  np.testing.assert_allclose(grads, np.mean(2 * x * (0.5 * x - 1)), rtol=1e-6)
  np.testing.assert_array_equal(metrics["seen"], np.ones(6))
  parts = 1 if microbatch in (0, 9) else 6 // microbatch
  assert metrics["parts"] == parts


def test_microbatches_have_their_index():
  def loss_fn(params, part, index):
    return params * 0, {"indices": jnp.zeros(3).at[index].add(part.sum())}

  batch = jnp.asarray([1.0, 10, 100, 1000, 10_000, 100_000])
  _, _, metrics = state_lib.accumulate(loss_fn, jnp.float32(1), batch, 2)
  # Strided: microbatch i holds rows i and i + 3, so each spans the devices.
  np.testing.assert_array_equal(metrics["indices"], [1001, 10_010, 100_100])


def test_a_microbatch_must_divide_the_batch():
  with pytest.raises(ValueError, match="4 does not divide batch 6"):
    state_lib.accumulate(
      lambda p, b, i: (p, {}), jnp.float32(1), jnp.ones(6), 4
    )


def test_angle_between_gradients():
  def tree(*values):
    return {"a": jnp.asarray(values[:1]), "b": jnp.asarray(values[1:])}

  for a, b, degrees in (
    (tree(3.0, 0.0), tree(5.0, 0.0), 0),
    (tree(1.0, 0.0), tree(1.0, 1.0), 45),
    (tree(0.0, 2.0), tree(7.0, 0.0), 90),
    (tree(1.0, 1.0), tree(-2.0, -2.0), 180),
    (tree(0.0, 0.0), tree(1.0, 0.0), 90),  # one vanishes
    (tree(1e-12, 0.0), tree(1e-12, 1e-12), 45),
  ):
    np.testing.assert_allclose(state_lib.angle(a, b), degrees, atol=0.05)
  # Rounding must not push the cosine beyond 1.
  rng = np.random.default_rng(0)
  for _ in range(20):
    x = jnp.asarray(rng.normal(size=1000), jnp.float32)
    assert np.isfinite(state_lib.angle(x, 3 * x))


@pytest.fixture(scope="module")
def fingerprint():
  return jax.jit(state_lib.params_checksum)


def test_invariant_29_any_bit_changes_the_fingerprint(fingerprint):
  rng = np.random.default_rng(0)
  tree = {
    "a": rng.normal(size=(3, 4)),
    "b": rng.normal(size=5),
    "c": np.zeros(1),
  }
  tree = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
  clean = fingerprint(tree)
  assert clean.dtype == jnp.uint32 and clean == fingerprint(tree)
  seen = {int(clean)}
  for name, leaf in tree.items():
    for place in np.ndindex(leaf.shape):
      for bit in range(32):
        bits = leaf.copy().view(np.uint32)
        bits[place] ^= np.uint32(1) << np.uint32(bit)
        spoiled = {**tree, name: bits.view(np.float32)}
        seen.add(int(fingerprint(spoiled)))
  assert len(seen) == 1 + 32 * 18


@pytest.mark.parametrize(
  "a, b", [(1.5, -1.5), (0.0, -0.0), (1.0, 2.0), (0.1, 0.2)]
)
def test_invariant_29_moved_values_change_the_fingerprint(fingerprint, a, b):
  """Also two that differ in their highest bits only, at every distance."""
  x = np.zeros((8, 256), np.float32)
  x[0, 0] = a
  for place in (1, 2, 7, 8, 256, 512, 513, 1024, 2047):
    one, other = x.copy(), x.copy()
    one.flat[place] = b
    other[0, 0], other.flat[place] = b, a
    assert fingerprint(one) != fingerprint(other), place
  transposed = np.arange(2048, dtype=np.float32).reshape(8, 256)
  assert fingerprint(transposed) != fingerprint(
    transposed.reshape(256, 8).T.copy()
  )
  assert fingerprint([x, x + 1]) != fingerprint([x + 1, x])


def test_new_state_starts_at_zero():
  optimizer = optax.sgd(0.1)
  params = {"w": jnp.ones(2)}
  state = state_lib.new_state(params, optimizer)
  assert state.step == 0 and state.step.dtype == jnp.int32
  assert state.params is params
