"""Encodes records as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import records
from instructgpt_jax.data.tokenizers import Tokenizer


class EncodedRanking(NamedTuple):
  """A ranking in token ids."""

  prompt: np.ndarray  # [p] int32
  completions: tuple[np.ndarray, ...]  # K of [n] int32
  ranks: tuple[int, ...]  # K


def _int32(ids) -> np.ndarray:
  return np.asarray(ids, np.int32)


def uses_template(tokenizer: Tokenizer, data: configs.Data) -> bool:
  """Whether conversations are written by the tokenizer's chat template.

  Raises:
    UserError: the template is to be used, but cannot be.
  """
  return data.chat_template and tokenizer.template is not None


def encode_prompts(
  turns: Sequence[tuple[records.Turn, ...]],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[np.ndarray]:
  """Token ids of prompts, exactly as a rollout starts from them."""
  if uses_template(tokenizer, data):
    date = data.template_date
    return [_int32(tokenizer.encode_turns(t, date)) for t in turns]
  return encode_documents(
    [records.prompt_text(t, data) for t in turns], tokenizer
  )


def encode_completions(
  completions: Sequence[str], tokenizer: Tokenizer, data: configs.Data
) -> list[np.ndarray]:
  """Encodes replies with their end-of-text token.

  A reply is encoded as it follows its prompt in one text. One of more
  than `data.max_response_tokens` is cut there, and then has no end-of-text
  token: it did not end.
  """
  limit = data.max_response_tokens
  return [
    ids[:limit] for ids in encode_untruncated(completions, tokenizer, data)
  ]


def encode_untruncated(
  completions: Sequence[str], tokenizer: Tokenizer, data: configs.Data
) -> list[np.ndarray]:
  """Encodes whole replies with their end-of-text token."""
  if uses_template(tokenizer, data):
    encoded = tokenizer.encode_replies(completions)
    end = tokenizer.eos_id
  else:
    encoded = encode_continuations(
      [records.completion_text(c) for c in completions],
      [data.assistant_tag] * len(completions),
      tokenizer,
    )
    end = tokenizer.document_end_id
  return [_int32([*ids, end]) for ids in encoded]


def encode_demonstrations(
  demonstrations: Sequence[records.Demonstration],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """`encode_demonstration` of many, in two tokenizer calls."""
  return list(
    zip(
      encode_prompts([d.turns for d in demonstrations], tokenizer, data),
      encode_completions(
        [d.completion for d in demonstrations], tokenizer, data
      ),
      strict=True,
    )
  )


def encode_rankings(
  rankings: Sequence[records.Ranking],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[EncodedRanking]:
  """Rankings in token ids; every completion ends as a rollout's does."""
  prompts = encode_prompts([r.turns for r in rankings], tokenizer, data)
  flat = encode_completions(
    [c for r in rankings for c in r.completions], tokenizer, data
  )
  result, at = [], 0
  for ranking, prompt in zip(rankings, prompts, strict=True):
    k = len(ranking.completions)
    result.append(
      EncodedRanking(prompt, tuple(flat[at : at + k]), tuple(ranking.ranks))
    )
    at += k
  return result


def encode_documents(
  texts: Sequence[str], tokenizer: Tokenizer
) -> list[np.ndarray]:
  """Token ids of documents, with what begins every text."""
  begin = tokenizer.begin
  return [_int32([*begin, *ids]) for ids in tokenizer.encode_batch(texts)]


def encode_continuations(
  texts: Sequence[str], contexts: Sequence[str], tokenizer: Tokenizer
) -> list[np.ndarray]:
  """Encodes texts, each as it follows its context in one text."""
  return [_int32(ids) for ids in tokenizer.encode_after(texts, contexts)]


def with_instruction(
  instruction: str,
  turns: tuple[records.Turn, ...],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> tuple[records.Turn, ...]:
  """Puts an instruction ahead of a conversation.

  The instruction is a system turn, or joins the existing one. Where the chat
  template takes no system turns, it precedes the first turn's text.
  """
  template = tokenizer.template if data.chat_template else None
  if template is None:
    return (records.Turn("system", instruction), *turns)
  first = turns[0]
  if first.role != "system" and template.takes_system:
    return (records.Turn("system", instruction), *turns)
  text = f"{instruction}\n\n{first.text}"
  return (records.Turn(first.role, text), *turns[1:])


def split_into_pairs(
  rankings: Sequence[EncodedRanking],
) -> list[EncodedRanking]:
  """Each pair that is not tied as a ranking of its own."""
  return [
    EncodedRanking(
      r.prompt,
      (r.completions[i], r.completions[j]),
      (r.ranks[i], r.ranks[j]),
    )
    for r in rankings
    for i in range(len(r.ranks))
    for j in range(i)
    if r.ranks[i] != r.ranks[j]
  ]


def with_loss_weights(
  prompt: np.ndarray, completion: np.ndarray, *, mask_prompt: bool = True
) -> tuple[np.ndarray, np.ndarray]:
  """(ids [n], weights [n]) of one demonstration.

  Nothing precedes the first token, so its weight is 0 in any case.
  """
  ids = np.concatenate([_int32(prompt), _int32(completion)])
  weights = np.ones(len(ids), np.float32)
  weights[: len(prompt) if mask_prompt else 1] = 0.0
  weights[:1] = 0.0
  return ids, weights
