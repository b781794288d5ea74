"""Log-probabilities of the queries of `continuation_rows`, on a mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.types import Array, PyTree


def queries_logp(
  params: PyTree,
  tokens: Array,
  segments: Array,
  positions: Array,
  queries: Array,
  targets: Array,
  chunks: Array,
  *,
  model: LanguageModel,
  chunk: int,
) -> tuple[Array, Array]:
  """Computes log-probabilities of targets, a chunk of each row at a time.

  Args:
    params: the model's parameters.
    tokens: see `continuation_rows.Batch`.
    segments: likewise.
    positions: likewise.
    queries: likewise.
    targets: likewise.
    chunks: likewise.
    model: the language model.
    chunk: see `continuation_rows.Batch`.

  Returns:
    [B, R] float32 log-probabilities, and [B, R] bool, whether the target is the
    most likely token. They have no meaning past the last query.
  """
  hidden: Any = model.apply(
    {"params": params}, tokens, segments, positions, method="hidden"
  )

  def body(index, results):
    def part(x):
      return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)

    places, target = part(queries), part(targets)
    states = jnp.take_along_axis(hidden, places[..., None], axis=1)
    logits: Any = model.apply({"params": params}, states, method="unembed")
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    values = (
      chosen - jax.nn.logsumexp(logits, axis=-1),
      logits.argmax(axis=-1) == target,
    )
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(all_, new, index * chunk, axis=1)
      for all_, new in zip(results, values, strict=True)
    )

  empty = jnp.zeros(queries.shape, jnp.float32), jnp.zeros(queries.shape, bool)
  return jax.lax.fori_loop(0, chunks, body, empty)


score_queries = mesh_lib.jit_per_mesh(
  queries_logp, static_argnames=("model", "chunk")
)
