"""Episodes in full rows: none is torn, none is lost, padding is not run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax.steps import packing

LENGTH = 12
STATES = 7


def episodes(first, last):
  """[B, T] bool: tokens from the first column of each up to the last."""
  columns = np.arange(LENGTH)
  return (columns >= first[:, None]) & (columns < last[:, None])


def draw(seed):
  rng = np.random.default_rng(seed)
  return episodes(rng.integers(0, 6, 8), rng.integers(6, LENGTH + 1, 8))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("microbatch", [1, 2, 4, 8])
def test_each_episode_stands_whole_in_one_row(seed, microbatch):
  real = draw(seed)
  found = packing.pack(jnp.asarray(real), STATES, microbatch)
  assert found.source.shape == (8 // microbatch, microbatch, LENGTH)
  source = np.asarray(found.source).reshape(-1, LENGTH)
  taken = np.sort(source[source < real.size])
  np.testing.assert_array_equal(taken, np.flatnonzero(real))
  for episode, row in enumerate(real):
    mine = np.argwhere(source // LENGTH == episode)
    assert len(mine) == row.sum()
    assert len(set(mine[:, 0])) == 1
    np.testing.assert_array_equal(np.diff(mine[:, 1]), 1)
  filled = np.flatnonzero((source < real.size).any(axis=1))
  assert int(found.used) == filled.max() // microbatch + 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("microbatch", [1, 2, 4, 8])
def test_every_state_is_found_in_its_row(seed, microbatch):
  real = draw(seed)
  x = 1 + np.arange(real.size, dtype=np.float32).reshape(real.shape)
  found = packing.pack(jnp.asarray(real), STATES, microbatch)
  put = found.scatter_tokens(jnp.asarray(x))
  assert float(put.sum()) == x[real].sum()  # zeros elsewhere
  read, wanted = real[:, -STATES:], x[:, -STATES:]
  states = np.asarray(found.scatter_states(jnp.asarray(wanted)))
  assert states.shape == (8 // microbatch, microbatch, STATES)
  assert states.sum() == wanted[read].sum()
  columns = np.take_along_axis(np.asarray(put), found.columns, axis=2)
  np.testing.assert_array_equal(columns[states > 0], states[states > 0])
  taken = found.gather_states(jnp.asarray(columns))
  np.testing.assert_array_equal(taken[read], wanted[read])


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
    found = packing.pack(real, STATES, 2)

    def run(part):
      jax.debug.callback(lambda: runs.append(1), ordered=True)
      return 2 * part

    x = found.scatter_states(x[:, -STATES:])
    return found.gather_states(packing.each(found, run, x))

  x = jnp.arange(real.size, dtype=jnp.float32).reshape(real.shape)
  taken = doubled(x)
  jax.effects_barrier()
  read, wanted = real[:, -STATES:], x[:, -STATES:]
  np.testing.assert_array_equal(taken[read], 2 * wanted[read])
  assert len(runs) == used


def test_no_row_has_more_states_than_it_may():
  """Four episodes of three tokens fit a row, and two whose tokens are read."""
  real = jnp.asarray(episodes(np.full(8, LENGTH - 3), np.full(8, LENGTH)))
  assert int(packing.pack(real, 6, 1).used) == 4
  assert int(packing.pack(real, 12, 1).used) == 2


def test_microbatches_have_tokens_enough():
  least = packing.LEAST_TOKENS
  assert packing.microbatch_size(64, least, 1) == 16
  assert packing.microbatch_size(64, least // 32, 1) == 32
  assert packing.microbatch_size(64, least // 64, 1) == 64
  assert packing.microbatch_size(7, least, 1) == 7
  assert packing.microbatch_size(64, least, 8) == 64


def test_a_microbatch_must_divide_the_batch():
  with pytest.raises(ValueError, match="3 does not divide batch 8"):
    packing.pack(jnp.ones((8, LENGTH), bool), STATES, 3)
