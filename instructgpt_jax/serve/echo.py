"""Prompts that are returned with their log-probabilities."""

from __future__ import annotations

import numpy as np

from instructgpt_jax.chat.row_sampler import Scores
from instructgpt_jax.data.tokenizers import StreamDecoder, Tokenizer
from instructgpt_jax.serve.answer import Delta, TokenScore
from instructgpt_jax.serve.batcher import top_of


def echoed(
  tokenizer: Tokenizer,
  ids: np.ndarray,
  text: str | None,
  scores: Scores | None,
  top_logprobs: int,
) -> Delta:
  """Returns a prompt as the beginning of its answer.

  Args:
    tokenizer: decodes the prompt.
    ids: [p] token ids of the prompt.
    text: the prompt's text; None decodes the ids.
    scores: scores of the last p - 1 tokens; None for no log-probabilities.
    top_logprobs: number of most likely tokens to return.
  """
  if text is None:
    text = tokenizer.decode(ids)
  if scores is None:
    return Delta(text, (), None)
  tokens = []
  offsets = _offsets(tokenizer, ids, text)
  for i, token in enumerate(ids.tolist()):
    logp, top = None, ()
    if i:
      logp = float(scores.logp[i - 1])
      top = top_of(scores, i - 1, top_logprobs)
    tokens.append(TokenScore(token, logp, top, offsets[i]))
  return Delta(text, tuple(tokens), None)


def _offsets(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> list[int]:
  """Returns where each token begins in the text."""
  decoder = StreamDecoder(tokenizer)
  decoded, offsets = "", []
  for token in ids.tolist():
    offsets.append(len(decoded))
    decoded += decoder.push(token)
  decoded += decoder.flush()
  # Some tokenizers begin a text with a space that it does not have.
  extra = len(decoded) - len(text) if decoded.endswith(text) else 0
  return [min(max(0, offset - extra), len(text)) for offset in offsets]
