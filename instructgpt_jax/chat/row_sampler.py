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
from instructgpt_jax.models.heads import LanguageModel, positions_of
from instructgpt_jax.models.sampling import sample_rows
from instructgpt_jax.training import sampling as sampling_lib
from instructgpt_jax.types import Array, PyTree

_POSITIONS = 64  # positions whose [V] logits exist at a time


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
  key(seed), index), t), as `models.sampling.generate` does. It does not depend
  on the other rows.
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

  def sample(
    self,
    rows: Sequence[Row],
    *,
    width: int,
    slots: int,
    top_k: int = 0,
    top_logprobs: int = 0,
  ) -> Iterator[Scores]:
    """Yields the next [B] tokens of all rows, `slots - width` times at most.

    The caller decides when an answer ends; later tokens of its row have no
    meaning.

    Args:
      rows: B answers.
      width: tokens to which all prompts are padded.
      slots: tokens of a padded prompt and its longest answer.
      top_k: number of most likely tokens to sample from; 0 is all.
      top_logprobs: K, see `Scores`.

    Raises:
      UserError: the model's logits are not finite.
    """
    tokens, mask = packing.left_pad([r.ids for r in rows], width, self._pad_id)
    settings = _Settings(
      seed=np.array([r.seed & 0xFFFFFFFF for r in rows], np.uint32),
      index=np.array([r.index for r in rows], np.int32),
      temperature=np.array([r.temperature for r in rows], np.float32),
      top_p=np.array([r.top_p for r in rows], np.float32),
      length=np.array([len(r.ids) for r in rows], np.int32),
    )
    logits, cache = self._prefill(self._params, tokens, mask, slots=slots)
    for count in range(slots - width):
      scores, logits, cache = self._decode_step(
        self._params,
        logits,
        cache,
        settings,
        np.int32(count),
        top_k=top_k,
        top_logprobs=top_logprobs,
        truncate=bool((settings.top_p < 1).any()),
      )
      scores = Scores(*map(np.asarray, scores))
      sampling_lib.require_finite(scores.logp)
      yield scores

  def score(
    self, prompts: Sequence[np.ndarray], *, width: int, top_logprobs: int = 0
  ) -> list[Scores]:
    """Scores the tokens of prompts, all but the first of each.

    Args:
      prompts: B prompts, [p] token ids each.
      width: tokens to which all prompts are padded.
      top_logprobs: K, see `Scores`.

    Returns:
      Scores of the last p - 1 tokens of each prompt.

    Raises:
      UserError: the model's logits are not finite.
    """
    tokens, mask = packing.left_pad(prompts, width, self._pad_id)
    scores = Scores(
      *map(
        np.asarray,
        self._score(self._params, tokens, mask, top_logprobs=top_logprobs),
      )
    )
    rows = [
      Scores(*(x[i, width - len(ids) :] for x in scores))
      for i, ids in enumerate(prompts)
    ]
    for row in rows:
      sampling_lib.require_finite(row.logp)
    return rows

  def _jit(self, function: Callable[..., Any], **options: Any) -> Any:
    width = self._model.config.d_model
    return jax.jit(
      function, compiler_options=decode_compiler_options(width), **options
    )

  @functools.cached_property
  def _prefill(self) -> Any:
    def prefill(params, tokens, mask, *, slots):
      return self._model.apply(
        {"params": params},
        tokens,
        mask.astype(np.int32),
        positions_of(mask),
        slots,
        method="prefill",
      )

    return self._jit(prefill, static_argnames="slots")

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
      return jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[: rows * length].reshape(
          rows, length, *x.shape[2:]
        ),
        scores,
      )

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
