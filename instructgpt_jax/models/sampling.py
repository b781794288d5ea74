"""Sampling of responses with a KV cache, inside one jitted program."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax import sharding
from instructgpt_jax.models import continuous_batching
from instructgpt_jax.models.cache import Cache
from instructgpt_jax.models.continuous_batching import Slots
from instructgpt_jax.models.heads import (
  LanguageModel,
  decoding_params,
  positions_of,
  prefill,
)
from instructgpt_jax.types import Array, PromptBatch, Rollout


def truncate_logits(
  logits: Array, *, top_k: int, top_p: float | Array
) -> Array:
  """Keeps the k most likely tokens, then the nucleus of mass p.

  Args:
    logits: [B, V], already divided by the temperature.
    top_k: number of tokens to keep; 0 keeps all.
    top_p: keeps the smallest set whose probability reaches this; the number 1
      keeps all. A [B, 1] array has one for each row.

  Returns:
    [B, V] logits with −inf where a token cannot be sampled. The most likely
    token always stays.
  """
  if top_k:
    kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if not isinstance(top_p, float | int) or top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    count = jnp.sum(before < top_p, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0), axis=-1)
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  return logits


def _invert_cdf(
  blocks: Array, top: Array, cumulative: Array, uniform: Array
) -> Array:
  """Inverts the cumulative distribution in two levels, without sorting.

  Args:
    blocks: [N, C, B] logits, the vocabulary split into N blocks of C.
    top: [B], the largest logit.
    cumulative: [N, B], mass of exp(blocks − top) up to and including a block.
    uniform: [B] in [0, 1 − 2⁻²³].

  Returns:
    [B] int32 tokens, each of positive mass.
  """
  target = uniform * cumulative[-1]
  block = jnp.argmax(cumulative > target, axis=0)[None]
  before = jnp.where(
    block > 0, jnp.take_along_axis(cumulative, jnp.maximum(block - 1, 0), 0), 0
  )[0]
  logits = jnp.take_along_axis(blocks, block[None], axis=0)[0]
  inside = jnp.cumsum(jnp.exp(logits - top), axis=0)
  # The two levels are summed in different orders and may round differently.
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
  """Samples one token for each sequence, from one uniform number each.

  The cumulative distribution is inverted in two levels: on a CPU
  `jax.random.categorical` would draw V random numbers for each token.

  Args:
    logits: [V, B] float32, as `LanguageModel.decode` returns them.
    uniform: [B] float32 in [0, 1 − 2⁻²³], unused at temperature 0.
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
  padding = ((0, -size % width), (0, 0))
  blocks = jnp.pad(logits, padding, constant_values=-jnp.inf)
  blocks = blocks.reshape(-1, width, count)
  top = blocks.max(axis=1).max(axis=0)
  cumulative = jnp.cumsum(jnp.exp(blocks - top).sum(axis=1), axis=0)
  if temperature == 0.0:
    token = jnp.argmax(logits, axis=0)
  else:
    token = _invert_cdf(blocks, top, cumulative, uniform)
  token_logit = jnp.take_along_axis(logits, token[None], axis=0)[0]
  return token.astype(jnp.int32), token_logit - top - jnp.log(cumulative[-1])


def sample_rows(
  logits: Array,
  uniform: Array,
  *,
  temperature: Array,
  top_p: Array,
  top_k: int = 0,
  truncate: bool = True,
) -> Array:
  """Samples one token for each sequence, as `sample`, with its own settings.

  Args:
    logits: see `sample`.
    uniform: see `sample`.
    temperature: [B] float32; 0 takes the most likely token.
    top_p: [B] float32, see `truncate_logits`.
    top_k: see `truncate_logits`.
    truncate: whether some `top_p` is below 1; static.

  Returns:
    [B] int32 tokens.
  """
  greedy = temperature == 0
  scaled = logits / jnp.where(greedy, 1.0, temperature)
  if top_k:
    scaled = truncate_logits(scaled.T, top_k=top_k, top_p=1.0).T
  if truncate:
    nucleus = truncate_logits(scaled.T, top_k=0, top_p=top_p[:, None]).T
    scaled = jnp.where(top_p < 1, nucleus, scaled)
  token, _ = sample(scaled, uniform, temperature=1.0)
  return jnp.where(greedy, jnp.argmax(logits, axis=0).astype(jnp.int32), token)


def uniforms(key: Array, ids: Array, steps: int) -> Array:
  """Draws [B, steps] uniform numbers from fold_in(fold_in(key, id), step)."""

  def row(i: Array) -> Array:
    step_keys = jax.vmap(
      functools.partial(jax.random.fold_in, jax.random.fold_in(key, i))
    )
    return jax.vmap(jax.random.uniform)(step_keys(jnp.arange(steps)))

  return jax.vmap(row)(ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
  """How responses are sampled.

  Attributes:
    max_new_tokens: N, the longest response in tokens.
    temperature: 0 is greedy.
    top_k: see `truncate_logits`; training refuses it.
    top_p: see `truncate_logits`; training refuses it.
    eos_id: ids that end a response, and are part of it.
    pad_id: id after the end of a response.
    samples: responses to each prompt.
    slots: responses decoded at once, rounded down to whole waves; 0 is all.
  """

  max_new_tokens: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  eos_id: int | tuple[int, ...]
  pad_id: int
  samples: int = 1
  slots: int = 0

  def is_eos(self, tokens: Array) -> Array:
    """Returns whether each token ends a response."""
    if isinstance(self.eos_id, int):
      return tokens == self.eos_id
    return jnp.isin(tokens, jnp.array(self.eos_id))

  def split_slots(self, num_prompts: int) -> tuple[int, int]:
    """Returns the prompts that are admitted at once, and the slots."""
    responses = num_prompts * self.samples
    if not 0 < self.slots < responses:
      return num_prompts, responses
    wave = max(1, self.slots // (4 * self.samples))
    size = wave * self.samples
    return wave, max(1, self.slots // size) * size


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decoder:
  """The steps of `generate` on the state of its slots."""

  model: LanguageModel
  params: Any  # `decoding_params`
  queue: PromptBatch  # prompts, padded to whole waves
  num_prompts: Array  # [] int32, prompts up to the last one to be answered
  uniform: Array  # [R, N] float32, random numbers of each response
  sampling: SamplingParams
  wave: int  # prompts that are admitted at once
  one_wave: bool  # all prompts are admitted at once

  @property
  def cache_axis(self) -> int:
    """Axis of the slots in the cache's keys and values."""
    return 1 if self.model.config.scan_layers else 0

  def append_token(self, state: Slots, logits: Array) -> Slots:
    """Samples a token from [V, W] logits and appends it to each response."""
    logits = sharding.shard(logits, None, "batch")
    token, logp = sample(
      logits,
      self.uniform[state.response_id, state.step],
      temperature=self.sampling.temperature,
      top_k=self.sampling.top_k,
      top_p=self.sampling.top_p,
    )
    limit = self.sampling.max_new_tokens
    here = jnp.arange(limit) == state.step[:, None]
    here &= state.active[:, None]
    step = state.step + 1
    return dataclasses.replace(
      state,
      step=step,
      active=state.active & ~self.sampling.is_eos(token) & (step < limit),
      tokens=jnp.where(here, token[:, None], state.tokens),
      logp=jnp.where(here, logp[:, None], state.logp),
    )

  def admit(self, first: Array, slot: Array) -> Slots:
    """Prefills the next wave and samples its first tokens.

    Args:
      first: [] int32, index of the wave's first prompt.
      slot: [] int32, the cache's slot after the prompts.
    """
    samples, limit = self.sampling.samples, self.sampling.max_new_tokens
    prompts: PromptBatch = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, first, self.wave), self.queue
    )
    prompt_length = prompts.tokens.shape[1]
    logits, cache = prefill(
      self.model,
      self.params,
      prompts.tokens,
      prompts.mask,
      prompt_length + limit,
    )

    def repeat(x: Array, axis: int, slot_axis: int) -> Array:
      x = jnp.repeat(x, samples, axis=axis)
      if self.one_wave:
        return x
      return jnp.roll(x, slot - prompt_length, slot_axis)

    axis, count = self.cache_axis, self.wave * samples
    state = Slots(
      next_prompt=first + self.wave,
      response_id=first * samples + jnp.arange(count, dtype=jnp.int32),
      active=jnp.repeat(prompts.ids >= 0, samples),
      step=jnp.zeros(count, jnp.int32),
      length=jnp.repeat(prompts.mask.sum(axis=1, dtype=jnp.int32), samples),
      tokens=jnp.full((count, limit), -1, jnp.int32),
      logp=jnp.zeros((count, limit), jnp.float32),
      cache=Cache(
        keys=tuple(repeat(x, axis, axis + 2) for x in cache.keys),
        values=tuple(repeat(x, axis, axis + 2) for x in cache.values),
        valid=repeat(cache.valid, 0, 1),
        index=slot,
      ),
    )
    return self.append_token(state, jnp.repeat(logits, samples, axis=1))

  def decode_step(self, state: Slots) -> Slots:
    """Decodes one token of each response."""
    newest = jnp.take_along_axis(state.tokens, state.step[:, None] - 1, axis=1)
    decoded: Any = self.model.apply(
      {"params": self.params},
      jnp.maximum(newest[:, 0], 0),
      state.length + state.step - 1,
      state.cache,
      method="decode",
    )
    logits, cache = decoded
    return self.append_token(dataclasses.replace(state, cache=cache), logits)

  def decode_until_room(self, state: Slots) -> Slots:
    """Decodes until a waiting wave fits, or all responses have ended."""
    needed = self.wave * self.sampling.samples

    def unfinished(state: Slots) -> Array:
      room = (~state.active).sum() >= needed
      return state.active.any() & ~(
        room & (state.next_prompt < self.num_prompts)
      )

    return jax.lax.while_loop(unfinished, self.decode_step, state)


def generate(
  model: LanguageModel,
  params: Any,
  prompts: PromptBatch,
  key: Array,
  sampling: SamplingParams,
) -> Rollout:
  """Samples responses to each prompt.

  Response r draws its token at step t from fold_in(fold_in(key, id), t), where
  the samples of prompt b have the ids samples · ids[b] + 0, 1, …. A response
  therefore depends neither on its batch, nor on the slot in which it is
  decoded, nor on the number of devices. Samples of a prompt share its prefill.

  With fewer slots than responses, prompts wait in a queue, and a quarter of the
  slots is refilled once that many responses have ended. All slots write at the
  same index of the cache, a ring buffer; a new prompt is placed right before
  this index.

  Args:
    model: the language model.
    params: its parameters, or `decoding_params` of them.
    prompts: B left-padded prompts of length P; those with a negative id are not
      answered.
    key: base random key.
    sampling: how responses are sampled; static under jit.

  Returns:
    The rollout, [B · samples, P + N]; a prompt's samples are adjacent.

  Raises:
    ValueError: P + N exceeds the model's context.
  """
  count, prompt_length = prompts.tokens.shape
  samples, limit = sampling.samples, sampling.max_new_tokens
  if prompt_length + limit > model.config.max_seq_len:
    raise ValueError(
      f"prompt {prompt_length} + response {limit} tokens exceed the model's"
      f" max_seq_len {model.config.max_seq_len}"
    )
  wave, num_slots = sampling.split_slots(count)
  padding = -count % wave
  queue = PromptBatch(
    tokens=jnp.pad(prompts.tokens, ((0, padding), (0, 0))),
    mask=jnp.pad(prompts.mask, ((0, padding), (0, 0))),
    ids=jnp.pad(prompts.ids, (0, padding), constant_values=-1),
  )
  ids = jnp.repeat(queue.ids, samples) * samples
  ids += jnp.arange(len(ids)) % samples
  uniform = uniforms(key, ids, limit)
  decoder = _Decoder(
    model=model,
    queue=queue,
    uniform=uniform,
    num_prompts=jnp.max(jnp.where(prompts.ids >= 0, 1 + jnp.arange(count), 0)),
    params=decoding_params(model, params),
    sampling=sampling,
    wave=wave,
    one_wave=wave == count,
  )
  if decoder.one_wave:
    start = jnp.zeros((), jnp.int32)
    state = decoder.admit(start, jnp.asarray(prompt_length, jnp.int32))
    state = decoder.decode_until_room(state)
    tokens, logp = state.tokens, state.logp
  else:
    tokens, logp = continuous_batching.decode_in_waves(
      continuous_batching.Programs(decoder.admit, decoder.decode_until_room),
      num_prompts=decoder.num_prompts,
      num_responses=len(ids),
      num_slots=num_slots,
      prompt_length=prompt_length,
      cache_axis=decoder.cache_axis,
    )
  rows = count * samples
  return _rollout(prompts, tokens[:rows], logp[:rows], sampling)


def _rollout(
  prompts: PromptBatch, tokens: Array, logp: Array, sampling: SamplingParams
) -> Rollout:
  """Makes the rollout of [R, N] tokens, which are -1 after the end."""
  mask = tokens >= 0
  repeated = jax.tree.map(
    lambda x: jnp.repeat(x, sampling.samples, axis=0), prompts
  )
  real = jnp.concatenate([repeated.mask, mask], axis=1)
  return Rollout(
    tokens=jnp.concatenate(
      [repeated.tokens, jnp.where(mask, tokens, sampling.pad_id)], axis=1
    ),
    segments=real.astype(jnp.int32),
    positions=positions_of(real),
    response_mask=mask,
    logp=logp,
    ended=sampling.is_eos(tokens).any(axis=1),
  )
