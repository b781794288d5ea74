"""Packing of episodes: none is split or lost, and padding does not run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.steps import packing

LENGTH = 12
STATES = 7


def episodes(first, last):
  """Makes a [B, T] bool mask from first and last positions."""
  positions = np.arange(LENGTH)
  return (positions >= first[:, None]) & (positions < last[:, None])


def draw(seed):
  rng = np.random.default_rng(seed)
  return episodes(rng.integers(0, 6, 8), rng.integers(6, LENGTH + 1, 8))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("microbatch", [1, 2, 4, 8])
def test_each_episode_is_in_one_row(seed, microbatch):
  real = draw(seed)
  packed = packing.pack(jnp.asarray(real), STATES, microbatch)
  assert packed.token_source.shape == (8 // microbatch, microbatch, LENGTH)
  source = np.asarray(packed.token_source).reshape(-1, LENGTH)
  taken = np.sort(source[source < real.size])
  np.testing.assert_array_equal(taken, np.flatnonzero(real))
  for episode, row in enumerate(real):
    indices = np.argwhere(source // LENGTH == episode)
    assert len(indices) == row.sum()
    assert len(set(indices[:, 0])) == 1
    np.testing.assert_array_equal(np.diff(indices[:, 1]), 1)
  filled = np.flatnonzero((source < real.size).any(axis=1))
  assert int(packed.num_microbatches) == filled.max() // microbatch + 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("microbatch", [1, 2, 4, 8])
def test_every_state_keeps_its_value(seed, microbatch):
  real = draw(seed)
  x = 1 + np.arange(real.size, dtype=np.float32).reshape(real.shape)
  packed = packing.pack(jnp.asarray(real), STATES, microbatch)
  tokens = packed.pack_tokens(jnp.asarray(x))
  assert float(tokens.sum()) == x[real].sum()  # zeros elsewhere
  is_state, expected = real[:, -STATES:], x[:, -STATES:]
  states = np.asarray(packed.pack_states(jnp.asarray(expected)))
  assert states.shape == (8 // microbatch, microbatch, STATES)
  assert states.sum() == expected[is_state].sum()
  positions = np.take_along_axis(
    np.asarray(tokens), packed.state_positions, axis=2
  )
  np.testing.assert_array_equal(positions[states > 0], states[states > 0])
  actual = packed.unpack_states(jnp.asarray(positions))
  np.testing.assert_array_equal(actual[is_state], expected[is_state])


@pytest.mark.parametrize(
  ("length", "used"),
  [(12, 4), (7, 4), (6, 2), (4, 2), (3, 1)],  # of 4 microbatches of 2 rows
)
def test_short_episodes_share_rows_and_empty_microbatches_are_not_run(
  length, used
):
  states = length * STATES // LENGTH
  first = np.full(8, LENGTH - STATES + states - length)
  real = jnp.asarray(episodes(first, first + length))
  runs = []

  @jax.jit
  def doubled(x):
    packed = packing.pack(real, STATES, 2)

    def run(part):
      jax.debug.callback(lambda: runs.append(1), ordered=True)
      return 2 * part

    x = packed.pack_states(x[:, -STATES:])
    return packed.unpack_states(packing.map_microbatches(packed, run, x))

  x = jnp.arange(real.size, dtype=jnp.float32).reshape(real.shape)
  actual = doubled(x)
  jax.effects_barrier()
  is_state, expected = real[:, -STATES:], x[:, -STATES:]
  np.testing.assert_array_equal(actual[is_state], 2 * expected[is_state])
  assert len(runs) == used


def test_rows_have_room_for_a_limited_number_of_states():
  """Four episodes of three tokens fit a row, and two whose tokens are read."""
  real = jnp.asarray(episodes(np.full(8, LENGTH - 3), np.full(8, LENGTH)))
  assert int(packing.pack(real, 6, 1).num_microbatches) == 4
  assert int(packing.pack(real, 12, 1).num_microbatches) == 2


def test_microbatches_have_enough_tokens():
  least = packing.MIN_TOKENS
  assert packing.microbatch_size(64, least, 1) == 16
  assert packing.microbatch_size(64, least // 32, 1) == 32
  assert packing.microbatch_size(64, least // 64, 1) == 64
  assert packing.microbatch_size(7, least, 1) == 7
  assert packing.microbatch_size(64, least, 8) == 64


def test_a_microbatch_must_divide_the_batch():
  with pytest.raises(ValueError, match="3 does not divide batch 8"):
    packing.pack(jnp.ones((8, LENGTH), bool), STATES, 3)
