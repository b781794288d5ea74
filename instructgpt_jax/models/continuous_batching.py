"""Decoding of many prompts in fewer slots, which are refilled as they end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from instructgpt_jax.models.cache import Cache
from instructgpt_jax.types import Array, pytree


@pytree
class Slots:
  """Responses that are decoded together, in W slots."""

  next_prompt: Array  # [] int32, prompts admitted so far
  response_id: Array  # [W] int32, the response in each slot; R if empty
  active: Array  # [W] bool, False once the response has ended
  step: Array  # [W] int32, tokens of the response so far
  length: Array  # [W] int32, tokens of its prompt
  tokens: Array  # [W, N] int32, -1 after the end
  logp: Array  # [W, N] float32
  cache: Cache


@dataclasses.dataclass(frozen=True)
class Programs:
  """The two programs that `decode_in_waves` alternates.

  Attributes:
    admit: (first prompt, cache slot) → the slots of the next wave of prompts,
      their first tokens sampled.
    decode_until_room: decodes until a wave fits, or to the end.
  """

  admit: Callable[[Array, Array], Slots]
  decode_until_room: Callable[[Slots], Slots]


def decode_in_waves(
  programs: Programs,
  *,
  num_prompts: Array,
  num_responses: int,
  num_slots: int,
  prompt_length: int,
  cache_axis: int,
) -> tuple[Array, Array]:
  """Decodes all responses in fewer slots, admitting a wave when it fits.

  Args:
    programs: the programs.
    num_prompts: [] int32, prompts to be answered.
    num_responses: R.
    num_slots: W, a multiple of a wave's.
    prompt_length: P, where the first wave's responses start in the cache.
    cache_axis: axis of the slots in the cache's keys and values.

  Returns:
    [R, N] int32 tokens, -1 after a response's end, and their log-probabilities.
  """
  zero = jnp.zeros((), jnp.int32)
  wave = jax.eval_shape(programs.admit, zero, zero)
  axes = _slot_axes(wave, cache_axis)

  def map_slots(change: Callable[..., Array], *trees: Slots) -> Slots:
    """Maps change(axis, leaf, …); leaves without slots are the last tree's."""
    return jax.tree.map(
      lambda axis, *x: x[-1] if axis is None else change(axis, *x),
      axes,
      *trees,
      is_leaf=lambda x: x is None,
    )

  def flush(output: tuple[Array, Array], state: Slots) -> tuple[Array, ...]:
    """Copies the responses in the slots to the output, ended or not."""
    return tuple(
      total.at[state.response_id].set(x, mode="drop")
      for total, x in zip(output, (state.tokens, state.logp), strict=True)
    )

  def refill(carry):
    state, output = carry
    output = flush(output, state)
    new = programs.admit(state.next_prompt, state.cache.index)
    free = jnp.argsort(state.active, stable=True)[: len(new.active)]

    def put(axis: int, old: Array, x: Array) -> Array:
      return old.at[(slice(None),) * axis + (free,)].set(x)

    return programs.decode_until_room(map_slots(put, state, new)), output

  def empty(axis: int, x: Array) -> Array:
    return jnp.zeros(
      (*x.shape[:axis], num_slots, *x.shape[axis + 1 :]), x.dtype
    )

  state = map_slots(empty, wave)
  state = dataclasses.replace(
    state,
    next_prompt=zero,
    response_id=jnp.full(num_slots, num_responses, jnp.int32),
    cache=dataclasses.replace(
      state.cache, index=jnp.asarray(prompt_length, jnp.int32)
    ),
  )
  shape = (num_responses, wave.tokens.shape[1])
  output = (jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
  state, output = jax.lax.while_loop(
    lambda carry: carry[0].next_prompt < num_prompts, refill, (state, output)
  )
  tokens, logp = flush(output, state)
  return tokens, logp


def _slot_axes(wave: Slots, cache_axis: int) -> Slots:
  """Returns the axis of the slots in each leaf; None where there is none."""
  axes = jax.tree.map(lambda x: 0 if x.ndim else None, wave)
  keys, values = (
    (cache_axis,) * len(x) for x in (wave.cache.keys, wave.cache.values)
  )
  return dataclasses.replace(
    axes, cache=dataclasses.replace(axes.cache, keys=keys, values=values)
  )
