"""The optimizer and its schedule against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.steps import optimizer as optimizer_lib
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
  """Returns the learning rate of update `step`, counted from 0."""
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
  schedule = jax.vmap(optimizer_lib.make_schedule(c, 10))
  actual = schedule(np.arange(15))
  expected = [rate(c, 10, step) for step in range(15)]
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


def test_schedule_known_answers():
  c = configs.Optimizer(
    learning_rate=1.0, final_fraction=0.1, warmup_steps=2, warmup_init=0.5
  )
  schedule = jax.vmap(optimizer_lib.make_schedule(c, 10))
  actual = schedule(np.array([0, 1, 2, 6, 10, 99]))
  np.testing.assert_allclose(actual, [0.5, 0.75, 1, 0.55, 0.1, 0.1], rtol=1e-6)


def test_warm_up_in_iterations_is_refused_outside_ppo():
  c = configs.Optimizer(warmup_steps=-1)
  for make in (
    lambda: optimizer_lib.make_schedule(c, 10),
    lambda: optimizer_lib.make_optimizer(c, 10).init({}),
  ):
    with pytest.raises(UserError) as caught:
      make()
    assert caught.value.code == "warmup_outside_ppo"
    assert caught.value.field == "optimizer.warmup_steps"


def adam_twin(c, total, params, gradients):
  """Computes Adam in float64: clipping, ε outside the root, weight decay."""
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
    dict(eps=0.05, clip_norm=None),  # ε large enough to show its position
    dict(eps=1e-8, clip_norm=3.0, weight_decay=0.1, **SCHEDULES[1]),
    dict(eps=1e-5, clip_norm=1.0, b1=0.8, b2=0.99, **SCHEDULES[2]),
  ],
)
def test_invariant_23_optimizer_equals_twin(options):
  """Uses gradients both above and below the clipping norm."""
  c = configs.Optimizer(learning_rate=0.1, **options)
  rng = np.random.default_rng(1)
  params = make_tree(rng)
  gradients = [
    jax.tree.map(lambda x, s=scale: np.float32(s) * x, make_tree(rng))
    for scale in (1.0, 0.01, 5.0, 0.1, 1e-3)
  ]
  optimizer = optimizer_lib.make_optimizer(c, 8)
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
    learning_rate=1.0, eps=0.01, clip_norm=None, schedule="constant"
  )
  optimizer = optimizer_lib.make_optimizer(c, 2)
  state = state_lib.new_state({"bias": jnp.zeros(1)}, optimizer)
  state = state_lib.apply_gradients(
    state, {"bias": jnp.full(1, 0.01)}, optimizer
  )
  np.testing.assert_allclose(state.params["bias"], -0.5, rtol=1e-5)
