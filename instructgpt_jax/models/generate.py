"""Sampling with a KV cache, inside one jitted program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from instructgpt_jax.models.transformer import LanguageModel, positions_of
from instructgpt_jax.types import Array, PromptBatch, Rollout


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


def sample(
  logits: Array,
  row_keys: Array,
  *,
  temperature: float,
  top_k: int = 0,
  top_p: float = 1.0,
) -> tuple[Array, Array]:
  """Draws one token a row.

  Args:
    logits: [B, V] float32.
    row_keys: [B] one random key a row.
    temperature: 0 takes the most likely token.
    top_k: see `truncate_logits`.
    top_p: see `truncate_logits`.

  Returns:
    [B] int32 tokens and their [B] float32 log-probabilities under the
    distribution that was sampled from (temperature 0: under temperature 1).
  """
  if temperature == 0.0:
    token = jnp.argmax(logits, axis=-1)
    scaled = logits
  else:
    scaled = truncate_logits(logits / temperature, top_k=top_k, top_p=top_p)
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(row_keys)
    token = jnp.argmax(scaled + noise, axis=-1)
  logp = jax.nn.log_softmax(scaled, axis=-1)
  picked = jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
  return token.astype(jnp.int32), picked


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
  eos_id: int,
  pad_id: int,
) -> Rollout:
  """Samples a response to each prompt.

  Row b at step t draws with fold_in(fold_in(key, ids[b]), t), so what a row
  samples depends neither on its batch nor on how many devices hold it. The
  loop ends early when every row has ended.

  Args:
    model: the language model.
    params: its parameters.
    prompts: B left-padded prompts of P columns.
    key: base random key.
    max_new_tokens: N.
    temperature: 0 is greedy.
    top_k: for use only; training refuses it.
    top_p: for use only; training refuses it.
    eos_id: ends a row; itself part of the response.
    pad_id: fills up ended rows.

  Returns:
    The rollout, P + N columns.
  """
  batch, width = prompts.tokens.shape
  slots = width + max_new_tokens
  if slots > model.config.context:
    raise ValueError(
      f"prompt {width} + response {max_new_tokens} tokens exceed the "
      f"model's context {model.config.context}"
    )
  variables = {"params": params}
  segments = prompts.mask.astype(jnp.int32)
  logits, cache = model.apply(
    variables,
    prompts.tokens,
    segments,
    positions_of(prompts.mask),
    slots,
    method="prefill",
  )
  lengths = segments.sum(axis=1)
  row_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(prompts.ids)

  def cond(carry):
    step, done = carry[0], carry[1]
    return (step < max_new_tokens) & ~done.all()

  def body(carry):
    step, done, tokens, logps, mask, logits, cache = carry
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
    token, logp = sample(
      logits, keys, temperature=temperature, top_k=top_k, top_p=top_p
    )
    token = jnp.where(done, pad_id, token)
    columns = (
      (tokens, token),
      (logps, jnp.where(done, 0.0, logp)),
      (mask, ~done),
    )
    tokens, logps, mask = (
      jax.lax.dynamic_update_slice_in_dim(old, new[:, None], step, axis=1)
      for old, new in columns
    )
    done = done | (token == eos_id)
    logits, cache = model.apply(
      variables, token, lengths + step, cache, method="decode"
    )
    return step + 1, done, tokens, logps, mask, logits, cache

  carry = (
    jnp.zeros((), jnp.int32),
    jnp.zeros((batch,), bool),
    jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
    jnp.zeros((batch, max_new_tokens), jnp.float32),
    jnp.zeros((batch, max_new_tokens), bool),
    logits,
    cache,
  )
  _, done, tokens, logps, mask, _, _ = jax.lax.while_loop(cond, body, carry)
  real = jnp.concatenate([prompts.mask, mask], axis=1)
  return Rollout(
    tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
    segments=real.astype(jnp.int32),
    positions=positions_of(real),
    response_mask=mask,
    logp=logps,
    ended=done,
  )
