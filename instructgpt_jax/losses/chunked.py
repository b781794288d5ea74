"""Losses of logits that are computed one chunk of tokens at a time.

Float32 logits of every position would be the largest array of a training step.
Here the tokens that carry loss are moved to the front, and the unembedding is
applied to one chunk of them at a time; tokens without loss cost nothing. A
chunk's gradient is computed with its logits, so nothing is recomputed. On a
mesh, each shard of the batch orders its own tokens.
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

# Each chunk reads and writes the unembedding's gradient, which is expensive for
# small chunks. The last chunk is half empty on average, which is expensive for
# large ones.
CHUNKS = 8
LEAST_TOKENS = 256
MOST_LOGITS = 1 << 27
# XLA's CPU backend is slow at matmuls with a transposed left operand and at
# most this many columns; the unembedding's gradient is then summed as [D, V].
NARROW = 512

# ([C, V] float32 logits, tree of [C, …], [C] bool used) → Σ loss, sums.
TokenLoss = Callable[[Array, PyTree, Array], tuple[Array, dict[str, Array]]]
Adjust = Callable[[Array], Array]  # [C, V] matmul → logits


def chunk_size(tokens: int, vocabulary: int) -> int:
  """Chooses the tokens of a chunk: an eighth of them, within bounds."""
  size = min(-(-tokens // CHUNKS), MOST_LOGITS // vocabulary)
  return max(1, min(tokens, max(LEAST_TOKENS, size)))


def _used_first(used: Array, chunk: int) -> tuple[Array, Array, Array]:
  """Orders tokens so that the used ones come first.

  Args:
    used: [M] bool.
    chunk: C.

  Returns:
    [M'] int32, the token at each position, where M' is M rounded up to chunks,
    and M where there is none; [M] int32, the position of each token; and []
    int32, the number of chunks with any used token.
  """
  count = used.size
  ones = used.astype(jnp.int32)
  total = ones.sum()
  rank = jnp.cumsum(ones)
  position = jnp.where(used, rank - 1, total + jnp.arange(count) - rank)
  room = -(-count // chunk) * chunk
  order = jnp.full(room, count, jnp.int32)
  order = order.at[position].set(jnp.arange(count, dtype=jnp.int32))
  return order, position, -(-total // chunk)


def _logits(hidden: Array, unembedding: Array) -> Array:
  """Computes logits [C, V] in float32 from [C, D] and [V, D]."""
  return jax.lax.dot_general(
    hidden,
    unembedding,
    (((1,), (1,)), ((), ())),
    precision=precision.of(hidden.dtype),
    preferred_element_type=jnp.float32,
  )


def _take(tree: PyTree, index: Array) -> PyTree:
  """Takes rows of arrays; an index past the end gives zeros."""
  return jax.tree.map(
    lambda x: jnp.asarray(x).at[index].get(mode="fill", fill_value=0), tree
  )


def _unchanged(logits: Array) -> Array:
  return logits


def chunked_logits_loss(
  loss: TokenLoss,
  hidden: Array,
  unembedding: Array,
  rows: PyTree,
  used: Array,
  adjust: Adjust = _unchanged,
) -> tuple[Array, dict[str, Array]]:
  """Sums a loss of logits over the used tokens.

  Gradients reach `hidden` and `unembedding`, of the loss alone.

  Args:
    loss: function of a chunk's logits, rows and mask that returns sums over the
      chunk. It depends on its arguments alone, and tokens that are not used add
      nothing.
    hidden: [M, D] hidden states.
    unembedding: [V, D].
    rows: tree of [M, …] arrays, constants of the loss such as targets.
    used: [M] bool, tokens that carry loss.
    adjust: makes logits from `hidden @ unembedding.T`.

  Returns:
    The loss, and the dict of sums.
  """

  def adjusted_loss(logits, rows, used):
    return loss(adjust(logits), rows, used)

  sums: Any = _summed_loss(adjusted_loss, hidden, unembedding, rows, used)
  return sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_loss(loss, hidden, unembedding, rows, used):
  return _over_shards(loss, hidden, unembedding, rows, used, grads=False)[0]


def _over_shards(loss, hidden, unembedding, rows, used, *, grads: bool) -> Any:
  """Computes sums and, with `grads`, gradients, by shards of the batch.

  Returns:
    The sums, and the gradients of `hidden` and of `unembedding` (if `grads`).
  """

  def run(tokens, unembedding):
    hidden, rows, used = tokens
    sums, gradients = _over_chunks(
      loss, hidden, unembedding, rows, used, grads=grads
    )
    hidden_grad, *unembedding_grad = gradients or (None,)
    return (sums, unembedding_grad), hidden_grad

  (sums, unembedding_grad), hidden_grad = sharding.psum_over_batch(
    run, (hidden, rows, used), unembedding
  )
  return sums, (hidden_grad, *unembedding_grad)


def _over_chunks(loss, hidden, unembedding, rows, used, *, grads: bool) -> Any:
  """Computes sums and, with `grads`, gradients, by chunks of tokens."""
  count, width = hidden.shape
  narrow = width <= NARROW
  chunk = chunk_size(count, unembedding.shape[0])
  order, position, chunks = _used_first(used, chunk)
  matrix = unembedding.astype(hidden.dtype)

  def chunk_of(index):
    tokens = jax.lax.dynamic_slice(order, (index * chunk,), (chunk,))
    states, constants, mask = _take((hidden, rows, used), tokens)
    # Not even a NaN where there is no loss may reach the unembedding.
    return jnp.where(mask[:, None], states, 0), constants, mask

  def body(index, carry):
    total, gradients = carry
    states, constants, mask = chunk_of(index)
    logits = _logits(states, matrix)
    if not grads:
      sums = loss(logits, constants, mask)
      return jax.tree.map(jnp.add, total, sums), gradients
    loss_and_grad = jax.value_and_grad(loss, has_aux=True)
    sums, logits_grad = loss_and_grad(logits, constants, mask)
    logits_grad = logits_grad.astype(hidden.dtype)
    hidden_grad, unembedding_grad = gradients
    hidden_grad = jax.lax.dynamic_update_slice(
      hidden_grad,
      precision.matmul(logits_grad, matrix).astype(hidden.dtype),
      (index * chunk, 0),
    )
    operands = (states, logits_grad) if narrow else (logits_grad, states)
    unembedding_grad += jax.lax.dot_general(
      *operands,
      (((0,), (0,)), ((), ())),
      precision=precision.of(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    total = jax.tree.map(jnp.add, total, sums)
    return total, (hidden_grad, unembedding_grad)

  shapes = jax.eval_shape(
    loss,
    jax.ShapeDtypeStruct((chunk, unembedding.shape[0]), jnp.float32),
    *jax.eval_shape(chunk_of, 0)[1:],
  )
  total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  gradients = ()
  if grads:
    gradients = (
      jnp.zeros((order.size, width), hidden.dtype),
      jnp.zeros(unembedding.shape[:: -1 if narrow else 1], jnp.float32),
    )
  total, gradients = jax.lax.fori_loop(0, chunks, body, (total, gradients))
  if grads:
    hidden_grad, unembedding_grad = gradients
    if narrow:
      unembedding_grad = unembedding_grad.T
    unembedding_grad = unembedding_grad.astype(unembedding.dtype)
    gradients = (hidden_grad[position], unembedding_grad)
  return total, gradients


def _forward(loss, hidden, unembedding, rows, used):
  return _over_shards(loss, hidden, unembedding, rows, used, grads=True)


def _backward(loss, gradients, cotangents):
  del loss
  scale, _ = cotangents
  hidden_grad, unembedding_grad = (
    (scale * x.astype(jnp.float32)).astype(x.dtype) for x in gradients
  )
  return hidden_grad, unembedding_grad, None, None


_summed_loss.defvjp(_forward, _backward)


def token_logp(
  hidden: Array,
  unembedding: Array,
  targets: Array,
  used: Array,
  *,
  temperature: float = 1.0,
  adjust: Adjust = _unchanged,
) -> Array:
  """Computes the log-probability of each used target, without gradients.

  Args:
    hidden: [M, D].
    unembedding: [V, D].
    targets: [M] int32.
    used: [M] bool.
    temperature: as in `language.token_logp`.
    adjust: as in `chunked_logits_loss`.

  Returns:
    [M] float32, 0 where a token is not used.
  """

  def run(tokens, unembedding):
    hidden, targets, used = tokens
    chunk = chunk_size(len(targets), unembedding.shape[0])
    order, position, chunks = _used_first(used, chunk)
    matrix = unembedding.astype(hidden.dtype)

    def body(index, logp):
      tokens = jax.lax.dynamic_slice(order, (index * chunk,), (chunk,))
      states, chunk_targets = _take((hidden, targets), tokens)
      chunk_logp = language.token_logp(
        adjust(_logits(states, matrix)), chunk_targets, temperature=temperature
      )
      return jax.lax.dynamic_update_slice(logp, chunk_logp, (index * chunk,))

    logp = jnp.zeros(order.size, jnp.float32)
    logp = jax.lax.fori_loop(0, chunks, body, logp)
    return (), jnp.where(used, logp[position], 0)

  return sharding.psum_over_batch(run, (hidden, targets, used), unembedding)[1]
