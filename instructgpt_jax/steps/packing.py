"""Episodes side by side in rows, since padding costs what tokens cost.

How many rows that takes only the device knows, once responses have ended. So
rows are run a microbatch at a time until none is left: one program for any
length of responses, and no copy to the host in between.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax import placement
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import Array, PyTree, pytree

# Each microbatch reads and writes the gradient, which few tokens are not worth;
# the last one is half empty, which many make dear.
MICROBATCHES = 4
LEAST_TOKENS = 768


@pytree
class Packing:
  """Where tokens of B padded rows stand in C microbatches of M full ones."""

  source: Array  # [C, M, T] int32, place in B · T of each; B · T: none
  place: Array  # [B, T] int32, place in C · M · T of each real one; 0 otherwise
  used: Array  # [] int32, microbatches that hold any

  def put(self, x: Array) -> Array:
    """[B, T] → [C, M, T], zeros where there is no token."""
    found = x.reshape(-1).at[self.source].get(mode="fill", fill_value=0)
    return placement.place(found, None, "batch", None)

  def take(self, x: Array) -> Array:
    """[C, M, T] → [B, T]; what stands in padding means nothing."""
    return placement.place(x.reshape(-1)[self.place], "batch", None)


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


def pack(real: Array, microbatch: int = 0) -> Packing:
  """The longest first, each in the first row that has room (first fit).

  Rows that are one microbatch stay as they are.

  Args:
    real: [B, T] bool, True on tokens.
    microbatch: M, a divisor of B; 0 is `microbatch_size`.
  """
  count, length = real.shape
  shards = placement.parts("batch", count)
  size = microbatch or microbatch_size(count, length, shards)
  if count % size:
    raise ValueError(f"microbatch {size} does not divide batch {count}")
  places = jnp.arange(real.size, dtype=jnp.int32).reshape(real.shape)
  nowhere = real.size
  if size == count:
    return Packing(
      source=jnp.where(real, places, nowhere)[None],
      place=places,
      used=jnp.ones((), jnp.int32),
    )
  lengths = real.sum(axis=1, dtype=jnp.int32)

  def enter(room: Array, index: Array) -> tuple[Array, Array]:
    own = lengths[index]
    row = jnp.argmax(room >= own).astype(jnp.int32)
    return room.at[row].add(-own), row * length + length - room[row]

  order = jnp.argsort(lengths, descending=True)
  room = jnp.full(count, length, jnp.int32)
  room, first = jax.lax.scan(enter, room, order)
  first = jnp.zeros(count, jnp.int32).at[order].set(first)
  place = first[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
  source = jnp.full(real.size, nowhere, jnp.int32)
  source = source.at[jnp.where(real, place, nowhere)].set(places, mode="drop")
  rows = (room < length).sum(dtype=jnp.int32)
  return Packing(
    source=source.reshape(-1, size, length),
    place=jnp.where(real, place, 0),
    used=-(-rows // size),
  )


def each(
  packing: Packing, function: Callable[[PyTree], Array], rows: PyTree
) -> Array:
  """function(rows) of each microbatch that holds tokens, zeros of others.

  Args:
    packing: of the rows.
    function: tree of [M, T] → [M, T] float32.
    rows: tree of [C, M, T].

  Returns:
    [C, M, T] float32.
  """
  count = len(packing.source)
  if count == 1:
    return function(jax.tree.map(lambda x: x[0], rows))[None]

  def put(index: Array, found: Array) -> Array:
    return found.at[index].set(function(jax.tree.map(lambda x: x[index], rows)))

  found = jnp.zeros(packing.source.shape, jnp.float32)
  return state_lib.up_to(packing.used, count, put, found)
