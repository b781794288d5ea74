"""Sampling with a KV cache, inside one jitted program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.models.decoder import Cache
from instructgpt_jax.models.transformer import (
  LanguageModel,
  decoding_params,
  positions_of,
)
from instructgpt_jax.types import Array, PromptBatch, Rollout, pytree


def truncate_logits(logits: Array, *, top_k: int, top_p: float) -> Array:
  """Keeps the k most likely tokens, then the nucleus of mass p.

  Args:
    logits: [B, V], already divided by the temperature.
    top_k: tokens kept; 0 keeps all.
    top_p: smallest set whose probability reaches this; 1 keeps all.

  Returns:
    [B, V] logits with −inf where a token cannot be drawn. The most likely
    token always stays.
  """
  if top_k:
    kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept = jnp.sum(before < top_p, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, jnp.maximum(kept - 1, 0), axis=-1)
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  return logits


def _draw(blocks: Array, top: Array, upto: Array, uniform: Array) -> Array:
  """Inverts the cumulative distribution in two levels, without sorting.

  Args:
    blocks: [N, C, B] logits, the vocabulary cut into N blocks of C.
    top: [B] the largest of them.
    upto: [N, B] mass of the blocks up to each: of exp(blocks − top).
    uniform: [B] in [0, 1 − 2⁻²³].

  Returns:
    [B] int32 tokens, each of positive mass.
  """
  target = uniform * upto[-1]
  block = jnp.argmax(upto > target, axis=0)[None]
  before = jnp.where(
    block > 0, jnp.take_along_axis(upto, jnp.maximum(block - 1, 0), 0), 0
  )[0]
  chosen = jnp.take_along_axis(blocks, block[None], axis=0)[0]
  inside = jnp.cumsum(jnp.exp(chosen - top), axis=0)
  # The two levels are summed in different orders and may round apart.
  below_one = jnp.float32(1 - 2**-23)
  rest = jnp.minimum(target - before, inside[-1] * below_one)
  return block[0] * blocks.shape[1] + jnp.argmax(inside > rest, axis=0)


def sample(
  logits: Array,
  uniform: Array,
  *,
  temperature: float,
  top_k: int = 0,
  top_p: float = 1.0,
) -> tuple[Array, Array]:
  """Draws one token a column, from one uniform number each.

  Args:
    logits: [V, B] float32, as decoding gives them.
    uniform: [B] float32 in [0, 1 − 2⁻²³], not looked at at temperature 0.
    temperature: 0 takes the most likely token.
    top_k: see `truncate_logits`.
    top_p: see `truncate_logits`.

  Returns:
    [B] int32 tokens and their [B] float32 log-probabilities under the
    distribution that was sampled from (temperature 0: under temperature 1).
  """
  size, count = logits.shape
  if temperature != 0.0:
    logits /= temperature
    if top_k or top_p < 1.0:
      logits = truncate_logits(logits.T, top_k=top_k, top_p=top_p).T
  width = max(1, round(size**0.5))
  room = ((0, -size % width), (0, 0))
  blocks = jnp.pad(logits, room, constant_values=-jnp.inf)
  blocks = blocks.reshape(-1, width, count)
  top = blocks.max(axis=1).max(axis=0)
  upto = jnp.cumsum(jnp.exp(blocks - top).sum(axis=1), axis=0)
  if temperature == 0.0:
    token = jnp.argmax(logits, axis=0)
  else:
    token = _draw(blocks, top, upto, uniform)
  picked = jnp.take_along_axis(logits, token[None], axis=0)[0]
  return token.astype(jnp.int32), picked - top - jnp.log(upto[-1])


def uniforms(key: Array, ids: Array, steps: int) -> Array:
  """[B, steps] uniform numbers, of fold_in(fold_in(key, id), step) each."""

  def row(i: Array) -> Array:
    at = jax.vmap(
      functools.partial(jax.random.fold_in, jax.random.fold_in(key, i))
    )
    return jax.vmap(jax.random.uniform)(at(jnp.arange(steps)))

  return jax.vmap(row)(ids)


@pytree
class _Slots:
  """Rows that are decoded together, W of them; rows come and go."""

  taken: Array  # [] int32, prompts that have entered
  owner: Array  # [W] int32, the response in each slot; R where there is none
  active: Array  # [W] bool, False once the response has ended
  step: Array  # [W] int32, tokens of the response
  length: Array  # [W] int32, tokens of its prompt
  tokens: Array  # [W, N] int32, -1 where nothing has been sampled
  logp: Array  # [W, N] float32
  cache: Cache


def generate(
  model: LanguageModel,
  params: Any,
  prompts: PromptBatch,
  key: Array,
  *,
  max_new_tokens: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  eos_id: int | tuple[int, ...],
  pad_id: int,
  samples: int = 1,
  slots: int = 0,
) -> Rollout:
  """Samples responses to each prompt.

  Row r at step t draws with fold_in(fold_in(key, id), t), where the samples of
  prompt b have the ids samples · ids[b] + 0, 1, …: what a row samples depends
  neither on its batch, nor on the slot that it is decoded in, nor on how many
  devices hold it. Samples of a prompt share its prefill.

  With fewer slots than rows, prompts wait in line: a quarter of the slots is
  filled anew as soon as so many have ended. All slots write the same column of
  the cache, which goes round; a prompt that enters is put right behind it.

  Args:
    model: the language model.
    params: its parameters, or what `decoding_params` made of them.
    prompts: B left-padded prompts of P columns; those of negative id are not
      answered.
    key: base random key.
    max_new_tokens: N.
    temperature: 0 is greedy.
    top_k: for use only; training refuses it.
    top_p: for use only; training refuses it.
    eos_id: ends a row; itself part of the response. Of several ids, each does.
    pad_id: fills up ended rows.
    samples: responses to each prompt.
    slots: rows decoded at once, rounded down to whole waves; 0 is all.

  Returns:
    The rollout, [B · samples, P + N]; a prompt's samples follow each other.
  """
  count, width = prompts.tokens.shape
  rows, columns = count * samples, width + max_new_tokens
  if columns > model.config.max_seq_len:
    raise ValueError(
      f"prompt {width} + response {max_new_tokens} tokens exceed the "
      f"model's context {model.config.max_seq_len}"
    )
  wave = count
  if 0 < slots < rows:
    wave = max(1, slots // (4 * samples))
    slots = max(1, slots // (wave * samples)) * wave * samples
  else:
    slots = rows
  entering = wave * samples
  fill = -count % wave
  queue = PromptBatch(
    tokens=jnp.pad(prompts.tokens, ((0, fill), (0, 0))),
    mask=jnp.pad(prompts.mask, ((0, fill), (0, 0))),
    ids=jnp.pad(prompts.ids, (0, fill), constant_values=-1),
  )
  row_ids = jnp.repeat(queue.ids, samples) * samples
  row_ids += jnp.arange(len(row_ids)) % samples
  uniform = uniforms(key, row_ids, max_new_tokens)
  # Prompts up to the last one that is to be answered.
  asked = jnp.max(jnp.where(prompts.ids >= 0, 1 + jnp.arange(count), 0))
  weights = {"params": decoding_params(model, params)}
  axis = 1 if model.config.scan_layers else 0  # of a slot in the caches

  def emit(state: _Slots, logits: Array) -> _Slots:
    logits = sharding.shard(logits, None, "batch")
    token, logp = sample(
      logits,
      uniform[state.owner, state.step],
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
    )
    here = jnp.arange(max_new_tokens) == state.step[:, None]
    here &= state.active[:, None]
    step = state.step + 1
    return dataclasses.replace(
      state,
      step=step,
      active=state.active & ~_ends(token, eos_id) & (step < max_new_tokens),
      tokens=jnp.where(here, token[:, None], state.tokens),
      logp=jnp.where(here, logp[:, None], state.logp),
    )

  def enter(first: Array, column: Array) -> _Slots:
    """The next prompts, their first tokens sampled, behind a column."""
    part: PromptBatch = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, first, wave), queue
    )
    prefilled: Any = model.apply(
      weights,
      part.tokens,
      part.mask.astype(jnp.int32),
      positions_of(part.mask),
      columns,
      method="prefill",
    )
    logits, cache = prefilled

    def placed(x: Array, axis: int, columns_at: int) -> Array:
      x = jnp.repeat(x, samples, axis=axis)
      return x if wave == count else jnp.roll(x, column - width, columns_at)

    state = _Slots(
      taken=first + wave,
      owner=first * samples + jnp.arange(entering, dtype=jnp.int32),
      active=jnp.repeat(part.ids >= 0, samples),
      step=jnp.zeros(entering, jnp.int32),
      length=jnp.repeat(part.mask.sum(axis=1, dtype=jnp.int32), samples),
      tokens=jnp.full((entering, max_new_tokens), -1, jnp.int32),
      logp=jnp.zeros((entering, max_new_tokens), jnp.float32),
      cache=Cache(
        keys=tuple(placed(x, axis, axis + 2) for x in cache.keys),
        values=tuple(placed(x, axis, axis + 2) for x in cache.values),
        valid=placed(cache.valid, 0, 1),
        index=column,
      ),
    )
    return emit(state, jnp.repeat(logits, samples, axis=1))

  def decode(state: _Slots) -> _Slots:
    newest = jnp.take_along_axis(state.tokens, state.step[:, None] - 1, axis=1)
    decoded: Any = model.apply(
      weights,
      jnp.maximum(newest[:, 0], 0),
      state.length + state.step - 1,
      state.cache,
      method="decode",
    )
    logits, cache = decoded
    return emit(dataclasses.replace(state, cache=cache), logits)

  def decode_until_room(state: _Slots) -> _Slots:
    def go_on(state: _Slots) -> Array:
      ready = (~state.active).sum() >= entering
      return state.active.any() & ~(ready & (state.taken < asked))

    return jax.lax.while_loop(go_on, decode, state)

  start = jnp.zeros((), jnp.int32)
  if wave == count:
    state = decode_until_room(enter(start, jnp.asarray(width, jnp.int32)))
    tokens, logp = state.tokens, state.logp
  else:
    tokens, logp = _in_waves(
      enter,
      decode_until_room,
      prompts=asked,
      rows=len(row_ids),
      slots=slots,
      width=width,
      cache_axis=axis,
    )
  tokens, logp = tokens[:rows], logp[:rows]
  mask = tokens >= 0
  before = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)
  real = jnp.concatenate([before.mask, mask], axis=1)
  return Rollout(
    tokens=jnp.concatenate(
      [before.tokens, jnp.where(mask, tokens, pad_id)], axis=1
    ),
    segments=real.astype(jnp.int32),
    positions=positions_of(real),
    response_mask=mask,
    logp=logp,
    ended=_ends(tokens, eos_id).any(axis=1),
  )


def _ends(tokens: Array, eos_id: int | tuple[int, ...]) -> Array:
  """Whether each token ends a row."""
  if isinstance(eos_id, int):
    return tokens == eos_id
  return jnp.isin(tokens, jnp.array(eos_id))


def _in_waves(
  enter: Callable[[Array, Array], _Slots],
  decode_until_room: Callable[[_Slots], _Slots],
  *,
  prompts: Array,
  rows: int,
  slots: int,
  width: int,
  cache_axis: int,
) -> tuple[Array, Array]:
  """Decodes all rows in fewer slots.

  Args:
    enter: (first prompt, column) → the slots of the next wave.
    decode_until_room: decodes until a wave fits, or to the end.
    prompts: [], how many are to be answered.
    rows: R, responses to them.
    slots: W.
    width: P, where the first wave's responses begin.
    cache_axis: of a slot in keys and values.

  Returns:
    [R, N] tokens, -1 after a response's end, and their log-probabilities.
  """
  zero = jnp.zeros((), jnp.int32)
  wave = jax.eval_shape(enter, zero, zero)
  axes = jax.tree.map(lambda x: 0 if x.ndim else None, wave)
  caches = [
    (cache_axis,) * len(x) for x in (wave.cache.keys, wave.cache.values)
  ]
  axes = dataclasses.replace(
    axes,
    cache=dataclasses.replace(axes.cache, keys=caches[0], values=caches[1]),
  )

  def over_slots(change: Callable[..., Array], *trees: _Slots) -> _Slots:
    """change(axis of the slots, leaf, …); what has none is the last tree's."""
    return jax.tree.map(
      lambda axis, *x: x[-1] if axis is None else change(axis, *x),
      axes,
      *trees,
      is_leaf=lambda x: x is None,
    )

  def leave(out: tuple[Array, Array], state: _Slots) -> tuple[Array, ...]:
    """Writes down what the slots hold, ended or not."""
    return tuple(
      into.at[state.owner].set(x, mode="drop")
      for into, x in zip(out, (state.tokens, state.logp), strict=True)
    )

  def refill(carry):
    state, out = carry
    out = leave(out, state)
    new = enter(state.taken, state.cache.index)
    free = jnp.argsort(state.active, stable=True)[: len(new.active)]

    def put(axis: int, old: Array, x: Array) -> Array:
      return old.at[(slice(None),) * axis + (free,)].set(x)

    return decode_until_room(over_slots(put, state, new)), out

  state = over_slots(
    lambda axis, x: jnp.zeros(
      (*x.shape[:axis], slots, *x.shape[axis + 1 :]), x.dtype
    ),
    wave,
  )
  state = dataclasses.replace(
    state,
    taken=zero,
    owner=jnp.full(slots, rows, jnp.int32),
    cache=dataclasses.replace(state.cache, index=jnp.asarray(width, jnp.int32)),
  )
  length = wave.tokens.shape[1]
  out = (
    jnp.full((rows, length), -1, jnp.int32),
    jnp.zeros((rows, length), jnp.float32),
  )
  state, out = jax.lax.while_loop(
    lambda carry: carry[0].taken < prompts, refill, (state, out)
  )
  tokens, logp = leave(out, state)
  return tokens, logp
