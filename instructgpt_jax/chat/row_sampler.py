"""Samples several answers token by token, with settings for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructgpt_jax.data import packing
from instructgpt_jax.distributed.compiler_options import decode_compiler_options
from instructgpt_jax.models.cache import Cache
from instructgpt_jax.models.heads import LanguageModel, positions_of, prefill
from instructgpt_jax.models.sampling import sample_rows
from instructgpt_jax.training import sampling as sampling_lib
from instructgpt_jax.types import Array, PyTree

_POSITIONS = 64  # positions whose [V] logits exist at a time
_NO_ROWS = -1  # axis of an array that all rows share


class Row(NamedTuple):
  """An answer to sample.

  Attributes:
    ids: [p] int32, token ids of the prompt.
    seed: seed of the answer; its lower 32 bits count.
    index: folded into the random key; numbers the answers of one seed.
    temperature: 0 takes the most likely token.
    top_p: probability mass of the most likely tokens to sample from.
  """

  ids: np.ndarray
  seed: int = 0
  index: int = 0
  temperature: float = 1.0
  top_p: float = 1.0


class Scores(NamedTuple):
  """Log-probabilities under the model, at temperature 1.

  Attributes:
    tokens: [...] int32, the tokens.
    logp: [...] float32, their log-probabilities.
    top_ids: [..., K] int32, the most likely tokens.
    top_logp: [..., K] float32, their log-probabilities, descending.
  """

  tokens: np.ndarray
  logp: np.ndarray
  top_ids: np.ndarray
  top_logp: np.ndarray


class _Settings(NamedTuple):
  """Settings of B rows, as arrays."""

  seed: Any  # [B] uint32
  index: Any  # [B] int32
  temperature: Any  # [B] float32
  top_p: Any  # [B] float32
  length: Any  # [B] int32, tokens of the prompt


class RowSampler:
  """Samples from a model; each shape of a batch is compiled once.

  The token of a row at step t is drawn with the random key fold_in(fold_in(
  key(seed), index), t), as `models.sampling.generate` does. In batches of one
  shape an answer does not depend on the other rows, not even in the last bits:
  prompts are prefilled one at a time, and decoded in a fixed number of rows.
  """

  def __init__(self, model: LanguageModel, params: PyTree, pad_id: int):
    """Prepares a model for sampling.

    Args:
      model: the language model.
      params: its `decoding_params`.
      pad_id: id of padding.
    """
    self._model, self._params, self._pad_id = model, params, pad_id
    self.max_top_logprobs = model.config.vocab_size
    self._prefill = self._jit(
      functools.partial(prefill, model), static_argnames="slots"
    )

  def sample(
    self,
    rows: Sequence[Row],
    *,
    width: int,
    slots: int,
    batch_size: int = 1,
    top_k: int = 0,
    top_logprobs: int = 0,
  ) -> Iterator[Scores]:
    """Yields the next tokens of all rows, `slots - width` times at most.

    The caller decides when an answer ends; later tokens of its row have no
    meaning.

    Args:
      rows: answers to sample.
      width: tokens to which all prompts are padded.
      slots: tokens of a padded prompt and its longest answer.
      batch_size: B, rows that are decoded, at least as many as there are.
      top_k: number of most likely tokens to sample from; 0 is all.
      top_logprobs: K, see `Scores`.

    Yields:
      Scores of [R] tokens.

    Raises:
      UserError: the model's logits are not finite.
    """
    count = len(rows)
    logits, cache = self._prefill_rows(rows, width, slots, batch_size)
    rows = [*rows, *[rows[-1]] * (batch_size - count)]
    settings = _Settings(
      seed=np.array([r.seed & 0xFFFFFFFF for r in rows], np.uint32),
      index=np.array([r.index for r in rows], np.int32),
      temperature=np.array([r.temperature for r in rows], np.float32),
      top_p=np.array([r.top_p for r in rows], np.float32),
      length=np.array([len(r.ids) for r in rows], np.int32),
    )
    for step in range(slots - width):
      scores, logits, cache = self._decode_step(
        self._params,
        logits,
        cache,
        settings,
        np.int32(step),
        top_k=top_k,
        top_logprobs=top_logprobs,
        truncate=bool((settings.top_p < 1).any()),
      )
      scores = Scores(*(np.asarray(x)[:count] for x in scores))
      sampling_lib.require_finite(scores.logp)
      yield scores

  def _prefill_rows(
    self, rows: Sequence[Row], width: int, slots: int, batch_size: int
  ) -> tuple[Array, Cache]:
    """Returns logits [V, B] after the prompts, and their cache.

    Each prompt is prefilled once. The last one fills the rows without an
    answer.
    """
    places: dict[bytes, list[int]] = {}
    for place in range(batch_size):
      ids = rows[min(place, len(rows) - 1)].ids
      places.setdefault(ids.tobytes(), []).append(place)
    state = None
    for indices in places.values():
      ids = rows[indices[0]].ids
      prompt = packing.left_pad([ids], width, self._pad_id)
      one = self._prefill(self._params, *prompt, slots=slots)
      if batch_size == 1:
        return one
      if state is None:
        state = self._empty(one, batch_size=batch_size)
      mask = np.zeros(batch_size, bool)
      mask[indices] = True
      state = self._insert(state, one, mask)
    assert state is not None
    return state

  def score(
    self, ids: np.ndarray, *, width: int, top_logprobs: int = 0
  ) -> Scores:
    """Scores the tokens of a prompt, all but the first.

    Args:
      ids: [p] token ids of the prompt.
      width: tokens to which it is padded.
      top_logprobs: K, see `Scores`.

    Returns:
      Scores of [p - 1] tokens.

    Raises:
      UserError: the model's logits are not finite.
    """
    tokens, mask = packing.left_pad([ids], width, self._pad_id)
    scores = self._score(self._params, tokens, mask, top_logprobs=top_logprobs)
    first = width - len(ids)
    scores = Scores(*(np.asarray(x)[0, first:] for x in scores))
    sampling_lib.require_finite(scores.logp)
    return scores

  def _jit(self, function: Callable[..., Any], **options: Any) -> Any:
    width = self._model.config.d_model
    return jax.jit(
      function, compiler_options=decode_compiler_options(width), **options
    )

  @functools.cached_property
  def _empty(self) -> Any:
    """Makes zeros like a prompt's (logits, cache), for more rows."""

    def empty(one, *, batch_size):
      def zeros(axis, x):
        if axis == _NO_ROWS:
          return x
        shape = (*x.shape[:axis], batch_size, *x.shape[axis + 1 :])
        return jnp.zeros(shape, x.dtype)

      return jax.tree.map(zeros, self._row_axes(one), one)

    return self._jit(empty, static_argnames="batch_size")

  @functools.cached_property
  def _insert(self) -> Any:
    """Puts a prompt's (logits, cache) into the rows of a mask."""

    def insert(state, one, mask):
      def select(axis, old, new):
        if axis == _NO_ROWS:
          return new
        shape = [1] * old.ndim
        shape[axis] = len(mask)
        return jnp.where(mask.reshape(shape), new, old)

      return jax.tree.map(select, self._row_axes(one), state, one)

    return self._jit(insert, donate_argnums=0)

  def _row_axes(self, state: tuple[Array, Cache]) -> tuple[int, Cache]:
    """Returns the axis of the rows in each array of (logits, cache)."""
    _, cache = state
    axis = 1 if self._model.config.scan_layers else 0
    keys, values = (
      tuple(axis for _ in arrays) for arrays in (cache.keys, cache.values)
    )
    return 1, Cache(keys=keys, values=values, valid=0, index=_NO_ROWS)

  @functools.cached_property
  def _decode_step(self) -> Any:
    def decode_step(
      params, logits, cache, settings, count, *, top_k, top_logprobs, truncate
    ):
      token = sample_rows(
        logits,
        jax.vmap(functools.partial(_uniform, count))(
          settings.seed, settings.index
        ),
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=top_k,
        truncate=truncate,
      )
      scores = _score_tokens(logits, token, top_logprobs)
      logits, cache = self._model.apply(
        {"params": params},
        token,
        settings.length + count,
        cache,
        method="decode",
      )
      return scores, logits, cache

    return self._jit(
      decode_step,
      donate_argnums=(1, 2),
      static_argnames=("top_k", "top_logprobs", "truncate"),
    )

  @functools.cached_property
  def _score(self) -> Any:
    model = self._model

    def score(params, tokens, mask, *, top_logprobs):
      hidden = model.apply(
        {"params": params},
        tokens,
        mask.astype(np.int32),
        positions_of(mask),
        method="hidden",
      )
      # The hidden state at a token predicts the next one.
      hidden = hidden[:, :-1, : model.config.d_model]
      rows, length, features = hidden.shape
      padding = -(rows * length) % _POSITIONS
      hidden = jnp.pad(hidden.reshape(-1, features), ((0, padding), (0, 0)))
      targets = jnp.pad(tokens[:, 1:].reshape(-1), (0, padding))

      def block(inputs):
        features, target = inputs
        logits = model.apply(
          {"params": params}, features.T, method="unembed_feature_major"
        )
        return _score_tokens(logits, target, top_logprobs)

      scores = jax.lax.map(
        block,
        (
          hidden.reshape(-1, _POSITIONS, features),
          targets.reshape(-1, _POSITIONS),
        ),
      )

      def unblock(x):
        x = x.reshape(
          -(-rows * length // _POSITIONS) * _POSITIONS, *x.shape[2:]
        )
        return x[: rows * length].reshape(rows, length, *x.shape[1:])

      return jax.tree.map(unblock, scores)

    return self._jit(score, static_argnames="top_logprobs")


def _uniform(count: Array, seed: Array, index: Array) -> Array:
  """Draws the uniform number of a row's step."""
  key = jax.random.fold_in(jax.random.key(seed), index)
  return jax.random.uniform(jax.random.fold_in(key, count))


def _score_tokens(logits: Array, tokens: Array, count: int) -> Scores:
  """Scores [B] tokens under [V, B] logits, with the `count` most likely."""
  logp = logits - jax.nn.logsumexp(logits, axis=0)
  token_logp = jnp.take_along_axis(logp, tokens[None], axis=0)[0]
  if count:
    top_logp, top_ids = jax.lax.top_k(logp.T, count)
  else:
    top_logp, top_ids = (jnp.zeros((len(tokens), 0), t) for t in ("f4", "i4"))
  return Scores(tokens, token_logp, top_ids, top_logp)
