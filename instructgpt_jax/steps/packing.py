"""Episodes side by side in rows, since padding costs what tokens cost.

How many rows that takes only the device knows, once responses have ended. So
rows are run a microbatch at a time until none is left: one program for any
length of responses, and no copy to the host in between.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.steps import accumulation
from instructgpt_jax.types import Array, PyTree, pytree

# Each microbatch reads and writes the gradient, which few tokens are not worth;
# the last one is half empty, which many make dear.
MICROBATCHES = 4
LEAST_TOKENS = 768


@pytree
class Packing:
  """Where B padded rows of T tokens stand in C microbatches of M full ones.

  The last S columns of a padded row, its states, are what is read of it. A full
  row has room for as many, and the network's last layer runs for no others.
  """

  source: Array  # [C, M, T] int32, place in B · T of each token; B · T: none
  columns: Array  # [C, M, S] int32, where in its row each state stands
  states: Array  # [C, M, S] int32, place in B · S of each; B · S: none
  place: Array  # [B, S] int32, place in C · M · S of each real one; 0 otherwise
  used: Array  # [] int32, microbatches that hold any

  def scatter_tokens(self, x: Array) -> Array:
    """[B, T] → [C, M, T], zeros where there is no token."""
    return _put(x, self.source)

  def scatter_states(self, x: Array) -> Array:
    """[B, S] → [C, M, S], zeros where there is no state."""
    return _put(x, self.states)

  def gather_states(self, x: Array) -> Array:
    """[C, M, S] → [B, S]; what stands in padding means nothing."""
    return sharding.shard(x.reshape(-1)[self.place], "batch", None)


def _put(x: Array, source: Array) -> Array:
  found = x.reshape(-1).at[source].get(mode="fill", fill_value=0)
  return sharding.shard(found, None, "batch", None)


def microbatch_size(rows: int, length: int, shards: int) -> int:
  """Rows at a time: a quarter of them, and some tokens at least.

  Where rows are split over devices all of them, since each microbatch would
  send weights and gradients anew.
  """
  if shards > 1:
    return rows
  for parts in range(MICROBATCHES, 1, -1):
    size = rows // parts
    if not rows % parts and size * length >= LEAST_TOKENS:
      return size
  return rows


def pack(real: Array, states: int, microbatch: int = 0) -> Packing:
  """The longest first, each in the first row that has room (first fit).

  Rows that are one microbatch stay as they are.

  Args:
    real: [B, T] bool, True on tokens, which stand side by side.
    states: S, columns from the last that are read.
    microbatch: M, a divisor of B; 0 is `microbatch_size`.
  """
  count, length = real.shape
  shards = sharding.num_shards("batch", count)
  size = microbatch or microbatch_size(count, length, shards)
  if count % size:
    raise ValueError(f"microbatch {size} does not divide batch {count}")
  read = real[:, -states:]
  if size == count:
    columns = jnp.arange(length - states, length, dtype=jnp.int32)
    return Packing(
      source=jnp.where(real, _places(real), real.size)[None],
      columns=jnp.broadcast_to(columns, (1, *read.shape)),
      states=jnp.where(read, _places(read), read.size)[None],
      place=_places(read),
      used=jnp.ones((), jnp.int32),
    )
  sizes = jnp.stack([x.sum(axis=1, dtype=jnp.int32) for x in (real, read)], 1)
  whole = jnp.array([length, states], jnp.int32)

  def enter(room: Array, index: Array) -> tuple[Array, Array]:
    own = sizes[index]
    row = jnp.argmax((room >= own).all(axis=1)).astype(jnp.int32)
    return room.at[row].add(-own), (row + 1) * whole - room[row]

  order = jnp.argsort(sizes[:, 0], descending=True)
  room = jnp.broadcast_to(whole, sizes.shape)
  room, first = jax.lax.scan(enter, room, order)
  first = jnp.zeros_like(sizes).at[order].set(first)
  of_token, of_state = (
    first[:, i, None] + jnp.cumsum(x, axis=1, dtype=jnp.int32) - 1
    for i, x in enumerate((real, read))
  )
  columns = jnp.zeros(read.size, jnp.int32)
  columns = columns.at[jnp.where(read, of_state, read.size)].set(
    of_token[:, -states:] % length, mode="drop"
  )
  rows = (room[:, 0] < length).sum(dtype=jnp.int32)
  return Packing(
    source=_sources(real, of_token).reshape(-1, size, length),
    columns=columns.reshape(-1, size, states),
    states=_sources(read, of_state).reshape(-1, size, states),
    place=jnp.where(read, of_state, 0),
    used=-(-rows // size),
  )


def _places(x: Array) -> Array:
  """[B, T] int32, of each in B · T."""
  return jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)


def _sources(real: Array, place: Array) -> Array:
  """[B, T], which of so many stands in each place; B · T where none does."""
  nowhere = real.size
  found = jnp.full(nowhere, nowhere, jnp.int32)
  found = found.at[jnp.where(real, place, nowhere)].set(
    _places(real), mode="drop"
  )
  return found.reshape(real.shape)


def each(
  packing: Packing,
  function: Callable[[PyTree], PyTree],
  rows: PyTree,
  outputs: PyTree = 0,
) -> PyTree:
  """Calls a function for each microbatch with tokens; others give zeros.

  Args:
    packing: of the rows.
    function: tree of [M, …] → [M, S] float32, or a tree of them.
    rows: tree of [C, M, …].
    outputs: a tree of anything, of the form that `function` returns.

  Returns:
    [C, M, S] float32, or a tree of them.
  """
  count = len(packing.states)
  if count == 1:
    result = function(jax.tree.map(lambda x: x[0], rows))
    return jax.tree.map(lambda x: x[None], result)

  def put(index: Array, results: PyTree) -> PyTree:
    result = function(jax.tree.map(lambda x: x[index], rows))
    return jax.tree.map(lambda x, y: x.at[index].set(y), results, result)

  zeros = jnp.zeros(packing.states.shape, jnp.float32)
  empty = jax.tree.map(lambda _: zeros, outputs)
  return accumulation.bounded_fori_loop(packing.used, count, put, empty)
