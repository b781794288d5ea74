"""Losses on logits that are never held whole: some tokens at a time.

Float32 logits of every position would be the largest array of a training step.
Here the positions that carry loss are brought together first, the unembedding
is applied to a chunk of them at a time, and positions without loss cost
nothing. A chunk's gradient is taken while its logits are at hand, so nothing is
computed twice. On a mesh, each part of the batch is brought together by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import precision, sharding
from instructgpt_jax.losses import language
from instructgpt_jax.types import Array, PyTree

# Each chunk reads and writes the unembedding's gradient, which a small chunk is
# not worth; the last one is half empty, which a large chunk makes dear.
CHUNKS = 8
LEAST_TOKENS = 256
MOST_LOGITS = 1 << 27
# XLA's CPU compiler is slow at products of a transposed left side and so few
# columns; the unembedding's gradient is then summed up as [D, V].
NARROW = 512

# ([C, V] float32 logits, tree of [C, …], [C] bool used) → Σ loss, sums.
TokenLoss = Callable[[Array, PyTree, Array], tuple[Array, dict[str, Array]]]
Adjust = Callable[[Array], Array]  # [C, V] products → the logits


def chunk_size(tokens: int, vocabulary: int) -> int:
  """Tokens a chunk: an eighth of them, within bounds."""
  wanted = min(-(-tokens // CHUNKS), MOST_LOGITS // vocabulary)
  return max(1, min(tokens, max(LEAST_TOKENS, wanted)))


def _places(used: Array, chunk: int) -> tuple[Array, Array, Array]:
  """Used tokens first, in their order.

  Args:
    used: [M] bool.
    chunk: C.

  Returns:
    [M'] int32 token of each place, M' the next multiple of C and M where there
    is none; [M] int32 place of each token; [] int32 chunks that hold any.
  """
  count = used.size
  ones = used.astype(jnp.int32)
  total = ones.sum()
  seen = jnp.cumsum(ones)
  place = jnp.where(used, seen - 1, total + jnp.arange(count) - seen)
  room = -(-count // chunk) * chunk
  order = jnp.full(room, count, jnp.int32)
  order = order.at[place].set(jnp.arange(count, dtype=jnp.int32))
  return order, place, -(-total // chunk)


def _logits(hidden: Array, unembedding: Array) -> Array:
  """[C, D] and [V, D] → [C, V] float32."""
  return jax.lax.dot_general(
    hidden,
    unembedding,
    (((1,), (1,)), ((), ())),
    precision=precision.of(hidden.dtype),
    preferred_element_type=jnp.float32,
  )


def _take(tree: PyTree, index: Array) -> PyTree:
  """Rows of arrays; zeros for an index past the end."""
  return jax.tree.map(
    lambda x: jnp.asarray(x).at[index].get(mode="fill", fill_value=0), tree
  )


def _same(logits: Array) -> Array:
  return logits


def chunked_logits_loss(
  loss: TokenLoss,
  hidden: Array,
  unembedding: Array,
  rows: PyTree,
  used: Array,
  adjust: Adjust = _same,
) -> tuple[Array, dict[str, Array]]:
  """Σ over the used tokens of a loss of their logits.

  Args:
    loss: gives sums over a chunk; a function of its arguments alone. Tokens
      that are not used must add nothing.
    hidden: [M, D] what the unembedding is applied to.
    unembedding: [V, D].
    rows: tree of [M, …] arrays: targets and whatever else the loss is of;
      constants.
    used: [M] bool, tokens that carry loss.
    adjust: makes logits of the products of `hidden` and `unembedding`.

  Returns:
    The loss and the dict of sums. Gradients reach `hidden` and `unembedding`,
    of the loss alone.
  """

  def adjusted(products, rows, used):
    return loss(adjust(products), rows, used)

  found: Any = _summed(adjusted, hidden, unembedding, rows, used)
  return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(loss, hidden, unembedding, rows, used):
  return _by_rows(loss, hidden, unembedding, rows, used, grads=False)[0]


def _by_rows(loss, hidden, unembedding, rows, used, *, grads: bool) -> Any:
  """Sums, and gradients of hidden states and unembedding if they are wanted."""

  def run(rows, unembedding):
    hidden, some, used = rows
    total, held = _run(loss, hidden, unembedding, some, used, grads=grads)
    of_hidden, *of_unembedding = held or (None,)
    return (total, of_unembedding), of_hidden

  (total, of_unembedding), of_hidden = sharding.psum_over_batch(
    run, (hidden, rows, used), unembedding
  )
  return total, (of_hidden, *of_unembedding)


def _run(loss, hidden, unembedding, rows, used, *, grads: bool) -> Any:
  count, width = hidden.shape
  narrow = width <= NARROW
  chunk = chunk_size(count, unembedding.shape[0])
  order, place, chunks = _places(used, chunk)
  matrix = unembedding.astype(hidden.dtype)

  def part(index):
    at = jax.lax.dynamic_slice(order, (index * chunk,), (chunk,))
    own, some, mask = _take((hidden, rows, used), at)
    # Not even a NaN where there is no loss may reach the unembedding.
    return jnp.where(mask[:, None], own, 0), some, mask

  def body(index, carry):
    total, held = carry
    own, some, mask = part(index)
    logits = _logits(own, matrix)
    if not grads:
      return jax.tree.map(jnp.add, total, loss(logits, some, mask)), held
    found, slope = jax.value_and_grad(loss, has_aux=True)(logits, some, mask)
    slope = slope.astype(hidden.dtype)
    of_hidden, of_unembedding = held
    of_hidden = jax.lax.dynamic_update_slice(
      of_hidden,
      precision.matmul(slope, matrix).astype(hidden.dtype),
      (index * chunk, 0),
    )
    of_unembedding += jax.lax.dot_general(
      *((own, slope) if narrow else (slope, own)),
      (((0,), (0,)), ((), ())),
      precision=precision.of(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    return jax.tree.map(jnp.add, total, found), (of_hidden, of_unembedding)

  shapes = jax.eval_shape(
    loss,
    jax.ShapeDtypeStruct((chunk, unembedding.shape[0]), jnp.float32),
    *jax.eval_shape(part, 0)[1:],
  )
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  held = ()
  if grads:
    held = (
      jnp.zeros((order.size, width), hidden.dtype),
      jnp.zeros(unembedding.shape[:: -1 if narrow else 1], jnp.float32),
    )
  total, held = jax.lax.fori_loop(0, chunks, body, (zeros, held))
  if grads:
    of_hidden, of_unembedding = held
    if narrow:
      of_unembedding = of_unembedding.T
    held = (of_hidden[place], of_unembedding.astype(unembedding.dtype))
  return total, held


def _forward(loss, hidden, unembedding, rows, used):
  return _by_rows(loss, hidden, unembedding, rows, used, grads=True)


def _backward(loss, held, cotangents):
  del loss
  scale, _ = cotangents
  of_hidden, of_unembedding = (
    (scale * x.astype(jnp.float32)).astype(x.dtype) for x in held
  )
  return of_hidden, of_unembedding, None, None


_summed.defvjp(_forward, _backward)


def token_logp(
  hidden: Array,
  unembedding: Array,
  targets: Array,
  used: Array,
  *,
  temperature: float = 1.0,
  adjust: Adjust = _same,
) -> Array:
  """Log-probability of each used target; not to be differentiated.

  Args:
    hidden: [M, D].
    unembedding: [V, D].
    targets: [M] int32.
    used: [M] bool.
    temperature: as in `language.token_logp`.
    adjust: as in `summed`.

  Returns:
    [M] float32, 0 where a token is not used.
  """

  def run(rows, unembedding):
    hidden, targets, used = rows
    chunk = chunk_size(len(targets), unembedding.shape[0])
    order, place, chunks = _places(used, chunk)
    matrix = unembedding.astype(hidden.dtype)

    def body(index, found):
      at = jax.lax.dynamic_slice(order, (index * chunk,), (chunk,))
      own, wanted = _take((hidden, targets), at)
      logp = language.token_logp(
        adjust(_logits(own, matrix)), wanted, temperature=temperature
      )
      return jax.lax.dynamic_update_slice(found, logp, (index * chunk,))

    found = jnp.zeros(order.size, jnp.float32)
    found = jax.lax.fori_loop(0, chunks, body, found)
    return (), jnp.where(used, found[place], 0)

  return sharding.psum_over_batch(run, (hidden, targets, used), unembedding)[1]
