"""Continues prompts in batches, until a stop string, in few tokens at a time.

A program decodes `STEPS` tokens of all rows. Between two calls the host looks
for stop strings, which may begin in one token and end in another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax.data import packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import compiler_options
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.models import heads, sampling
from instructgpt_jax.models.cache import Cache
from instructgpt_jax.sharding import batch_sharding
from instructgpt_jax.training import sampling as sampling_lib
from instructgpt_jax.types import Array, PyTree

STEPS = 8  # tokens of a call
_SMALLEST = 32  # tokens of the smallest padded prompt


class Ending(NamedTuple):
  """Where continuations end.

  Attributes:
    strings: a text ends before the first of them.
    ids: tokens that end a text, beside those of the tokenizer.
    max_tokens: most tokens of a text.
  """

  strings: tuple[str, ...]
  ids: frozenset[int]
  max_tokens: int


class Sampling(NamedTuple):
  """How tokens are drawn.

  Attributes:
    temperature: 0 takes the most likely token.
    top_k: number of most likely tokens to draw from; 0 is all.
    top_p: probability mass of the most likely tokens to draw from.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """Returns the text before the first stop string, and whether there is one."""
  places = [i for s in stop if (i := text.find(s)) >= 0]
  return (text[: min(places)], True) if places else (text, False)


class Generator:
  """Continues prompts by a model; each shape of a batch is compiled once."""

  def __init__(
    self,
    model: heads.LanguageModel,
    params: PyTree,
    tokenizer: Tokenizer,
    mesh: Mesh,
  ):
    """Prepares a model.

    Args:
      model: the language model.
      params: its parameters.
      tokenizer: its tokenizer.
      mesh: mesh of this process's devices.
    """
    self._model, self._tokenizer, self._mesh = model, tokenizer, mesh
    self._params = self._jit(functools.partial(heads.decoding_params, model))(
      params
    )
    self._prefill = self._jit(
      functools.partial(heads.prefill, model), static_argnames="slots"
    )

  def generate(
    self,
    prompts: Sequence[tuple[int, np.ndarray]],
    *,
    ending: Ending,
    settings: Sampling,
    seed: int,
    batch_size: int,
  ) -> Iterator[dict[int, str]]:
    """Yields the texts of each batch, by the prompts' numbers.

    A prompt's text depends on its number and the seed, and on the batch only by
    rounding.

    Args:
      prompts: number and token ids of each prompt; both lengths together fit
        the context.
      ending: where they end.
      settings: how tokens are drawn.
      seed: seed of the draws.
      batch_size: rows decoded together.
    """
    room = self._model.config.max_seq_len - ending.max_tokens
    by_width: dict[int, list[tuple[int, np.ndarray]]] = {}
    for prompt in prompts:
      width = min(max(_SMALLEST, 1 << (len(prompt[1]) - 1).bit_length()), room)
      by_width.setdefault(width, []).append(prompt)
    for width, group in sorted(by_width.items(), reverse=True):
      size = min(batch_size, 1 << (len(group) - 1).bit_length())
      size = mesh_lib.round_up_to_shards(size, self._mesh)
      for start in range(0, len(group), size):
        batch = group[start : start + size]
        rows = batch + batch[-1:] * (size - len(batch))
        texts = self._continue(rows, width, ending, settings, seed)
        yield {n: text for (n, _), text in zip(batch, texts, strict=False)}

  def _continue(
    self,
    rows: Sequence[tuple[int, np.ndarray]],
    width: int,
    ending: Ending,
    settings: Sampling,
    seed: int,
  ) -> list[str]:
    """Returns the texts of the rows of a batch."""
    tokens, mask = packing.left_pad(
      [ids for _, ids in rows], width, self._tokenizer.pad_id
    )
    steps = packing.round_up(ending.max_tokens, STEPS)
    tokens, mask, numbers = jax.device_put(
      (tokens, mask, np.array([n for n, _ in rows], np.int32)),
      batch_sharding(self._mesh),
    )
    state = self._prefill(self._params, tokens, mask, slots=width + steps)
    texts = [_Text(self._tokenizer, ending) for _ in rows]
    for start in range(0, steps, STEPS):
      drawn, logp, *state = self._decode(
        self._params,
        *state,
        mask,
        numbers,
        np.uint32(seed & 0xFFFFFFFF),
        np.int32(start),
        settings=settings,
      )
      drawn, logp = jax.device_get((drawn, logp))
      sampling_lib.require_finite(logp)
      for text, ids in zip(texts, drawn.T, strict=True):
        text.add(ids.tolist())
      if all(text.ended for text in texts):
        break
    return [text.text for text in texts]

  def _jit(self, function: Callable[..., Any], **options: Any) -> Any:
    return jax.jit(
      mesh_lib.with_mesh(self._mesh, function),
      compiler_options=compiler_options.decode_compiler_options(
        self._model.config.d_model, self._mesh
      ),
      **options,
    )

  @functools.cached_property
  def _decode(self) -> Any:
    def decode(
      params: PyTree,
      logits: Array,
      cache: Cache,
      mask: Array,
      numbers: Array,
      seed: Array,
      start: Array,
      *,
      settings: Sampling,
    ) -> tuple[Array, ...]:
      lengths = mask.sum(axis=1, dtype=jnp.int32)
      # The last call may pass the context; what it decodes there is not used.
      last = self._model.config.max_seq_len - 1
      keys = jax.vmap(
        functools.partial(jax.random.fold_in, jax.random.key(seed))
      )(numbers)

      def step(carry, index):
        logits, cache = carry
        uniform = jax.vmap(
          lambda key: jax.random.uniform(jax.random.fold_in(key, index))
        )(keys)
        token, logp = sampling.sample(logits, uniform, **settings._asdict())
        next_carry: Any = self._model.apply(
          {"params": params},
          token,
          jnp.minimum(lengths + index, last),
          cache,
          method="decode",
        )
        return next_carry, (token, logp)

      (logits, cache), (tokens, logp) = jax.lax.scan(
        step, (logits, cache), start + jnp.arange(STEPS, dtype=jnp.int32)
      )
      return tokens, logp, logits, cache

    return self._jit(decode, static_argnames="settings", donate_argnums=(1, 2))


class _Text:
  """A continuation that grows by a few tokens at a time.

  Attributes:
    text: the text so far, without a stop string.
    ended: whether it is complete.
  """

  def __init__(self, tokenizer: Tokenizer, ending: Ending):
    self._tokenizer, self._ending = tokenizer, ending
    self._last = ending.ids.union(tokenizer.stop_ids)
    self._ids: list[int] = []
    self.text, self.ended = "", False

  def add(self, ids: Sequence[int]) -> None:
    """Adds tokens up to the one that ends the text."""
    for token in ids:
      if self.ended:
        return
      if token in self._last:
        self.ended = True
        return
      self._ids.append(token)
      # After each token: later bytes can turn what is read as a stop string
      # now into parts of invalid characters.
      text = self._tokenizer.decode(self._ids)
      self.text, stopped = cut_at_stop(text, self._ending.strings)
      self.ended = stopped or len(self._ids) == self._ending.max_tokens
