"""Packs episodes into rows on the device, because padding costs compute.

How many rows this takes is known only on the device, once responses have ended.
Rows therefore run one microbatch at a time until none is left: one program
serves any length of responses, and nothing is copied to the host.

Shape letters:

  B  episodes, each padded to a row of its own      T  tokens of a row
  C  microbatches                                   M  packed rows of each
  S  states of a row: the last positions of a padded row, whose outputs are read

C · M = B, so that any episodes fit. If responses are short, the last
microbatches are empty and do not run.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.steps import accumulation
from instructgpt_jax.types import Array, PyTree, pytree

# The last microbatch with tokens is half empty on average, so several are
# better than one. But each reads the weights and adds to the gradient, which
# takes longer than it saves if a microbatch has few tokens.
MAX_MICROBATCHES = 4
MIN_TOKENS = 768


@pytree
class Packing:
  """Where the tokens and states of padded rows are in packed rows.

  Indices are flat: element [b, t] of [B, T] has index b · T + t. A packed row
  has room for S states as well as for T tokens, and the last layer of a network
  runs for the states only.
  """

  # Packed → padded: the index of what each packed position holds; B · T or
  # B · S where it is empty.
  token_source: Array  # [C, M, T] int32, index in [B, T]
  state_source: Array  # [C, M, S] int32, index in [B, S]
  # The position of each packed state in its row; arbitrary where it is empty.
  state_positions: Array  # [C, M, S] int32
  # Padded → packed: the index of each state of a padded row; arbitrary where
  # there is none.
  state_target: Array  # [B, S] int32, index in [C, M, S]
  num_microbatches: Array  # [] int32, microbatches with any token

  def pack_tokens(self, x: Array) -> Array:
    """Packs [B, T] to [C, M, T], with zeros where there is no token."""
    return _take(x, self.token_source)

  def pack_states(self, x: Array) -> Array:
    """Packs [B, S] to [C, M, S], with zeros where there is no state."""
    return _take(x, self.state_source)

  def unpack_states(self, x: Array) -> Array:
    """Unpacks [C, M, S] to [B, S]; values in padding are arbitrary."""
    return sharding.shard(x.reshape(-1)[self.state_target], "batch", None)


def _take(x: Array, index: Array) -> Array:
  """Takes elements by their flat index, and 0 where it is out of bounds."""
  values = x.reshape(-1).at[index].get(mode="fill", fill_value=0)
  return sharding.shard(values, None, "batch", None)


def microbatch_size(rows: int, length: int, shards: int) -> int:
  """Chooses the number of rows of a microbatch.

  It is a quarter of all rows, or more where that has few tokens. Rows that are
  sharded over devices are all one microbatch, since each microbatch would
  communicate weights and gradients again.

  Args:
    rows: number of all rows.
    length: tokens of a row.
    shards: number of shards of the rows.
  """
  if shards > 1:
    return rows
  for count in range(MAX_MICROBATCHES, 1, -1):
    size = rows // count
    if not rows % count and size * length >= MIN_TOKENS:
      return size
  return rows


def pack(token_mask: Array, num_states: int, microbatch: int = 0) -> Packing:
  """Packs episodes by first-fit decreasing: longest first, first row with room.

  With a single microbatch (M = B) nothing is packed: each episode keeps its own
  row, since fewer rows would not run faster in a program of fixed shape.

  Args:
    token_mask: [B, T] bool, True on tokens, which are contiguous in each row.
    num_states: S, number of last positions whose outputs are read. Those that
      are tokens are the states of an episode.
    microbatch: M, a divisor of B; 0 is `microbatch_size`.
  """
  count, length = token_mask.shape
  shards = sharding.num_shards("batch", count)
  microbatch_rows = microbatch or microbatch_size(count, length, shards)
  if count % microbatch_rows:
    raise ValueError(
      f"microbatch {microbatch_rows} does not divide batch {count}"
    )
  state_mask = token_mask[:, -num_states:]
  if microbatch_rows == count:
    return _keep_rows(token_mask, state_mask)
  masks = (token_mask, state_mask)
  episode_sizes = jnp.stack(
    [mask.sum(axis=1, dtype=jnp.int32) for mask in masks], 1
  )
  first_index, free = _first_fit_decreasing(episode_sizes, length, num_states)
  # The flat index in packed rows of each token and state of padded rows. Both
  # are contiguous in packed rows, so they are counted from the episode's first.
  token_target, state_target = (
    first_index[:, i, None] + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    for i, mask in enumerate(masks)
  )
  # A state is one of the last tokens: its position in the packed row follows
  # from that token's flat index.
  state_positions = jnp.zeros(state_mask.size, jnp.int32)
  state_positions = state_positions.at[
    jnp.where(state_mask, state_target, state_mask.size)
  ].set(token_target[:, -num_states:] % length, mode="drop")
  used_rows = (free[:, 0] < length).sum(dtype=jnp.int32)
  state_source = _invert(state_mask, state_target)
  return Packing(
    token_source=_invert(token_mask, token_target).reshape(
      -1, microbatch_rows, length
    ),
    state_source=state_source.reshape(-1, microbatch_rows, num_states),
    state_positions=state_positions.reshape(-1, microbatch_rows, num_states),
    state_target=jnp.where(state_mask, state_target, 0),
    num_microbatches=-(-used_rows // microbatch_rows),
  )


def _keep_rows(token_mask: Array, state_mask: Array) -> Packing:
  """Returns the packing that leaves all rows where they are, as C = 1."""
  length, num_states = token_mask.shape[1], state_mask.shape[1]
  positions = jnp.arange(length - num_states, length, dtype=jnp.int32)

  def index(mask: Array) -> Array:
    return jnp.where(mask, _flat_index(mask), mask.size)[None]

  return Packing(
    token_source=index(token_mask),
    state_positions=jnp.broadcast_to(positions, (1, *state_mask.shape)),
    state_source=index(state_mask),
    state_target=_flat_index(state_mask),
    num_microbatches=jnp.ones((), jnp.int32),
  )


def _first_fit_decreasing(
  episode_sizes: Array, length: int, num_states: int
) -> tuple[Array, Array]:
  """Assigns each episode to the first row with room, the longest first.

  Args:
    episode_sizes: [B, 2] int32, number of tokens and of states of each episode.
    length: tokens that a row has room for.
    num_states: states that a row has room for.

  Returns:
    [B, 2] int32, flat index of each episode's first token and first state in
    packed rows; and [B, 2] int32, tokens and states that are free in each row.
  """
  capacity = jnp.array([length, num_states], jnp.int32)

  def place(free: Array, episode: Array) -> tuple[Array, Array]:
    episode_size = episode_sizes[episode]
    # There is always a row with room, because there is one for each episode.
    row = jnp.argmax((free >= episode_size).all(axis=1)).astype(jnp.int32)
    # The next row's start less what is free is where the episode begins.
    return free.at[row].add(-episode_size), (row + 1) * capacity - free[row]

  order = jnp.argsort(episode_sizes[:, 0], descending=True)
  free = jnp.broadcast_to(capacity, episode_sizes.shape)
  free, first_index = jax.lax.scan(place, free, order)
  return jnp.zeros_like(episode_sizes).at[order].set(first_index), free


def _flat_index(x: Array) -> Array:
  """Returns the flat index of each element of [B, T], int32."""
  return jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)


def _invert(mask: Array, target: Array) -> Array:
  """Inverts a map from elements to flat indices of the same shape.

  Args:
    mask: [B, T] bool, True on elements that the map contains.
    target: [B, T] int32, the flat index that each element is mapped to.

  Returns:
    [B, T] int32, the flat index of the element that is mapped to each index;
    B · T where there is none.
  """
  size = mask.size
  empty = size  # beyond the last index
  source = jnp.full(size, empty, jnp.int32)
  source = source.at[jnp.where(mask, target, empty)].set(
    _flat_index(mask), mode="drop"
  )
  return source.reshape(mask.shape)


def map_microbatches(
  packing: Packing,
  function: Callable[[PyTree], PyTree],
  microbatches: PyTree,
  output_structure: PyTree = 0,
) -> PyTree:
  """Calls a function for each microbatch with tokens; others give zeros.

  Args:
    packing: the packing of the rows.
    function: function of a tree of [M, …], returns a tree of [M, S] float32.
    microbatches: tree of [C, M, …].
    output_structure: any tree of the structure that `function` returns. The
      default is a single array.

  Returns:
    Tree of [C, M, S] float32.
  """
  count = len(packing.state_source)
  if count == 1:
    result = function(jax.tree.map(lambda x: x[0], microbatches))
    return jax.tree.map(lambda x: x[None], result)

  def run(index: Array, results: PyTree) -> PyTree:
    result = function(jax.tree.map(lambda x: x[index], microbatches))
    return jax.tree.map(lambda x, y: x.at[index].set(y), results, result)

  zeros = jnp.zeros(packing.state_source.shape, jnp.float32)
  return accumulation.bounded_fori_loop(
    packing.num_microbatches,
    count,
    run,
    jax.tree.map(lambda _: zeros, output_structure),
  )
