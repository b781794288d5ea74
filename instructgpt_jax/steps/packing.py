"""Packs episodes into rows on the device, because padding costs compute.

How many rows this takes is known only on the device, once responses have ended.
Rows therefore run one microbatch at a time until none is left: one program
serves any length of responses, and nothing is copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.steps import accumulation
from instructgpt_jax.types import Array, PyTree, pytree

# Each microbatch reads and writes the gradient, which only many tokens are
# worth. The last microbatch is half empty on average, which wastes less where
# microbatches are many.
MICROBATCHES = 4
LEAST_TOKENS = 768


@pytree
class Packing:
  """How B padded rows of T tokens become C microbatches of M packed rows.

  The last S positions of a padded row are its states, the positions whose
  outputs are read. A packed row has room for S states as well, and the
  network's last layer runs for these positions only.
  """

  token_index: Array  # [C, M, T] int32, in B · T; B · T where there is no token
  state_index: Array  # [C, M, S] int32, in B · S; B · S where there is no state
  state_positions: Array  # [C, M, S] int32, position in its row of each state
  packed_index: Array  # [B, S] int32, in C · M · S; 0 where there is no state
  num_microbatches: Array  # [] int32, microbatches with any token

  def scatter_tokens(self, x: Array) -> Array:
    """Moves [B, T] to [C, M, T], with zeros where there is no token."""
    return _take(x, self.token_index)

  def scatter_states(self, x: Array) -> Array:
    """Moves [B, S] to [C, M, S], with zeros where there is no state."""
    return _take(x, self.state_index)

  def gather_states(self, x: Array) -> Array:
    """Moves [C, M, S] to [B, S]; values in padding are arbitrary."""
    return sharding.shard(x.reshape(-1)[self.packed_index], "batch", None)


def _take(x: Array, index: Array) -> Array:
  values = x.reshape(-1).at[index].get(mode="fill", fill_value=0)
  return sharding.shard(values, None, "batch", None)


def microbatch_size(rows: int, length: int, shards: int) -> int:
  """Chooses the rows of a microbatch.

  They are a quarter of all rows, or more where that has few tokens. Rows that
  are sharded over devices are all one microbatch, since each microbatch would
  communicate weights and gradients again.

  Args:
    rows: number of all rows.
    length: tokens of a row.
    shards: number of shards of the rows.
  """
  if shards > 1:
    return rows
  for count in range(MICROBATCHES, 1, -1):
    size = rows // count
    if not rows % count and size * length >= LEAST_TOKENS:
      return size
  return rows


def pack(real: Array, states: int, microbatch: int = 0) -> Packing:
  """Packs episodes by first-fit decreasing: longest first, first row with room.

  Rows of a single microbatch stay where they are.

  Args:
    real: [B, T] bool, True on tokens, which are contiguous in each row.
    states: S, number of last positions whose outputs are read.
    microbatch: M, a divisor of B; 0 is `microbatch_size`.
  """
  count, length = real.shape
  shards = sharding.num_shards("batch", count)
  size = microbatch or microbatch_size(count, length, shards)
  if count % size:
    raise ValueError(f"microbatch {size} does not divide batch {count}")
  is_state = real[:, -states:]
  if size == count:
    return _unpacked(real, is_state)
  sizes = [x.sum(axis=1, dtype=jnp.int32) for x in (real, is_state)]
  first, free = _first_fit_decreasing(jnp.stack(sizes, 1), length, states)
  token_position, state_position = (
    first[:, i, None] + jnp.cumsum(x, axis=1, dtype=jnp.int32) - 1
    for i, x in enumerate((real, is_state))
  )
  positions = jnp.zeros(is_state.size, jnp.int32)
  positions = positions.at[
    jnp.where(is_state, state_position, is_state.size)
  ].set(token_position[:, -states:] % length, mode="drop")
  rows = (free[:, 0] < length).sum(dtype=jnp.int32)
  state_index = _inverse(is_state, state_position)
  return Packing(
    token_index=_inverse(real, token_position).reshape(-1, size, length),
    state_index=state_index.reshape(-1, size, states),
    state_positions=positions.reshape(-1, size, states),
    packed_index=jnp.where(is_state, state_position, 0),
    num_microbatches=-(-rows // size),
  )


def _unpacked(real: Array, is_state: Array) -> Packing:
  """Returns the packing that leaves all rows where they are."""
  length, states = real.shape[1], is_state.shape[1]
  positions = jnp.arange(length - states, length, dtype=jnp.int32)
  return Packing(
    token_index=jnp.where(real, _flat_index(real), real.size)[None],
    state_positions=jnp.broadcast_to(positions, (1, *is_state.shape)),
    state_index=jnp.where(is_state, _flat_index(is_state), is_state.size)[None],
    packed_index=_flat_index(is_state),
    num_microbatches=jnp.ones((), jnp.int32),
  )


def _first_fit_decreasing(
  sizes: Array, length: int, states: int
) -> tuple[Array, Array]:
  """Assigns episodes to rows.

  Args:
    sizes: [B, 2] int32, number of tokens and of states of each episode.
    length: tokens that a row has room for.
    states: states that a row has room for.

  Returns:
    [B, 2] int32, flat position of each episode's first token and state; and
    [B, 2] int32, tokens and states that are free in each row.
  """
  capacity = jnp.array([length, states], jnp.int32)

  def place(free: Array, episode: Array) -> tuple[Array, Array]:
    size = sizes[episode]
    row = jnp.argmax((free >= size).all(axis=1)).astype(jnp.int32)
    return free.at[row].add(-size), (row + 1) * capacity - free[row]

  order = jnp.argsort(sizes[:, 0], descending=True)
  free = jnp.broadcast_to(capacity, sizes.shape)
  free, first = jax.lax.scan(place, free, order)
  return jnp.zeros_like(sizes).at[order].set(first), free


def _flat_index(x: Array) -> Array:
  """Returns the flat index of each element, [B, T] int32."""
  return jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)


def _inverse(real: Array, position: Array) -> Array:
  """Inverts a map of elements to flat positions; B · T where there is none."""
  nothing = real.size
  index = jnp.full(nothing, nothing, jnp.int32)
  index = index.at[jnp.where(real, position, nothing)].set(
    _flat_index(real), mode="drop"
  )
  return index.reshape(real.shape)


def map_microbatches(
  packing: Packing,
  function: Callable[[PyTree], PyTree],
  rows: PyTree,
  outputs: PyTree = 0,
) -> PyTree:
  """Calls a function for each microbatch with tokens; others give zeros.

  Args:
    packing: the packing of the rows.
    function: function of a tree of [M, …], returns a tree of [M, S] float32.
    rows: tree of [C, M, …].
    outputs: any tree of the structure that `function` returns.

  Returns:
    Tree of [C, M, S] float32.
  """
  count = len(packing.state_index)
  if count == 1:
    result = function(jax.tree.map(lambda x: x[0], rows))
    return jax.tree.map(lambda x: x[None], result)

  def run(index: Array, results: PyTree) -> PyTree:
    result = function(jax.tree.map(lambda x: x[index], rows))
    return jax.tree.map(lambda x, y: x.at[index].set(y), results, result)

  zeros = jnp.zeros(packing.state_index.shape, jnp.float32)
  empty = jax.tree.map(lambda _: zeros, outputs)
  return accumulation.bounded_fori_loop(
    packing.num_microbatches, count, run, empty
  )
