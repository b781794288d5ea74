"""Encodes records as token ids. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import records
from instructgpt_jax.data.tokenizers import Tokenizer

# Fields of `data` that the text of a prompt depends on, without and with a chat
# template.
TAG_FIELDS = ("user_tag", "assistant_tag", "turn_separator")
TEMPLATE_FIELDS = ("chat_template", "template_date")


class EncodedRanking(NamedTuple):
  """A ranking as token ids."""

  prompt: np.ndarray  # [p] int32
  completions: tuple[np.ndarray, ...]  # K of [n] int32
  ranks: tuple[int, ...]  # K
  grades: tuple[float, ...] = ()  # K, or none


def _int32(ids) -> np.ndarray:
  return np.asarray(ids, np.int32)


def uses_template(tokenizer: Tokenizer, data: configs.Data) -> bool:
  """Returns whether the tokenizer's chat template renders conversations.

  Raises:
    UserError: the template is enabled, but cannot be used.
  """
  return data.chat_template and tokenizer.template is not None


def prompt_format(data: configs.Data, tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the settings that decide the text of a prompt.

  Args:
    data: the settings.
    tokenizer: with a chat template, the tags are not used; without one, the
      settings of templates are not.
  """
  if tokenizer.template is None:
    return {name: getattr(data, name) for name in TAG_FIELDS}
  names = (
    TEMPLATE_FIELDS if data.chat_template else ("chat_template", *TAG_FIELDS)
  )
  return {name: getattr(data, name) for name in names}


def encode_prompts(
  turns: Sequence[tuple[records.Turn, ...]],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[np.ndarray]:
  """Encodes prompts; a rollout starts from exactly these ids."""
  if uses_template(tokenizer, data):
    date = data.template_date
    return [_int32(tokenizer.encode_turns(t, date)) for t in turns]
  return encode_documents(
    [records.prompt_text(t, data) for t in turns], tokenizer
  )


def encode_completions(
  completions: Sequence[str], tokenizer: Tokenizer, data: configs.Data
) -> list[np.ndarray]:
  """Encodes replies, each truncated to `data.max_response_tokens`.

  A reply is encoded as the continuation of its prompt. It ends with the
  end-of-text token, unless it is truncated: then it did not end.
  """
  limit = data.max_response_tokens
  encoded = encode_untruncated(completions, tokenizer, data)
  return [ids[:limit] for ids in encoded]


def encode_untruncated(
  completions: Sequence[str], tokenizer: Tokenizer, data: configs.Data
) -> list[np.ndarray]:
  """Encodes whole replies, each with its end-of-text token."""
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
  """Encodes demonstrations as (prompt ids, completion ids)."""
  return list(
    zip(
      encode_prompts([d.turns for d in demonstrations], tokenizer, data),
      encode_completions(
        [d.completion for d in demonstrations], tokenizer, data
      ),
      strict=True,
    )
  )


def encode_earlier_replies(
  demonstrations: Sequence[records.Demonstration],
  prompts: Sequence[np.ndarray],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[list[tuple[int, int]]]:
  """Finds the assistant's turns in prompts that may be learned.

  Args:
    demonstrations: the demonstrations.
    prompts: their encoded prompts.
    tokenizer: encoded them.
    data: likewise.

  Returns:
    The [start, stop) positions of each such turn among a prompt's ids: its text
    and, where a chat template writes one, the token that ends it. A token that
    holds the end of a turn and what follows it is left out.
  """
  template = uses_template(tokenizer, data)
  spans = []
  for record, prompt in zip(demonstrations, prompts, strict=True):
    if template:
      prefixes = tokenizer.reply_prefixes(record.turns, data.template_date)
    else:
      text = records.prompt_text(record.turns, data)
      edges = records.earlier_replies(record.turns, data)
      encoded = encode_documents(
        [text[:i] for edge in edges for i in edge], tokenizer
      )
      prefixes = list(zip(encoded[::2], encoded[1::2], strict=True))
    spans.append(
      [
        (
          _prefix_length(prompt, start, tokenizer, end=False),
          _prefix_length(prompt, stop, tokenizer, end=True),
        )
        for start, stop in prefixes
      ]
    )
  return spans


def _prefix_length(
  ids: np.ndarray, prefix: Sequence[int], tokenizer: Tokenizer, *, end: bool
) -> int:
  """Returns how many of a text's ids a prefix of the text has.

  Args:
    ids: ids of a whole text.
    prefix: ids of the prefix, which may end within a token of the text.
    tokenizer: encoded both.
    end: whether such a token is left out.
  """
  count = len(prefix)
  if np.array_equal(ids[:count], prefix):
    return count
  length = len(tokenizer.decode(prefix))

  def decoded(n: int) -> int:
    return len(tokenizer.decode(ids[:n]))

  if end:
    return bisect.bisect_right(range(len(ids) + 1), length, key=decoded) - 1
  return bisect.bisect_left(range(len(ids) + 1), length, key=decoded)


def encode_rankings(
  rankings: Sequence[records.Ranking],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[EncodedRanking]:
  """Encodes rankings; completions are encoded as by `encode_completions`."""
  prompts = encode_prompts([r.turns for r in rankings], tokenizer, data)
  completions = encode_completions(
    [c for r in rankings for c in r.completions], tokenizer, data
  )
  result, start = [], 0
  for ranking, prompt in zip(rankings, prompts, strict=True):
    stop = start + len(ranking.completions)
    result.append(
      EncodedRanking(
        prompt,
        tuple(completions[start:stop]),
        tuple(ranking.ranks),
        tuple(ranking.grades),
      )
    )
    start = stop
  return result


def encode_documents(
  texts: Sequence[str], tokenizer: Tokenizer
) -> list[np.ndarray]:
  """Encodes documents, each after the tokenizer's beginning-of-text ids."""
  begin = tokenizer.begin
  return [_int32([*begin, *ids]) for ids in tokenizer.encode_batch(texts)]


def encode_continuations(
  texts: Sequence[str], contexts: Sequence[str], tokenizer: Tokenizer
) -> list[np.ndarray]:
  """Encodes texts as continuations, each of its context."""
  return [_int32(ids) for ids in tokenizer.encode_after(texts, contexts)]


def with_instruction(
  instruction: str,
  turns: tuple[records.Turn, ...],
  tokenizer: Tokenizer,
  data: configs.Data,
) -> tuple[records.Turn, ...]:
  """Adds an instruction at the start of a conversation.

  The instruction is a system turn of its own, or precedes the text of an
  existing one. Where the chat template has no system turns, it precedes the
  text of the first turn.
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
  """Splits rankings into one ranking for each pair that is not tied."""
  return [
    EncodedRanking(
      r.prompt,
      (r.completions[i], r.completions[j]),
      (r.ranks[i], r.ranks[j]),
      (r.grades[i], r.grades[j]) if r.grades else (),
    )
    for r in rankings
    for i in range(len(r.ranks))
    for j in range(i)
    if r.ranks[i] != r.ranks[j]
  ]


def encode_examples(
  demonstrations: Sequence[records.Demonstration],
  tokenizer: Tokenizer,
  data: configs.Data,
  *,
  mask_prompt: bool = True,
  all_turns: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Encodes demonstrations as (ids, loss weights).

  Args:
    demonstrations: the demonstrations.
    tokenizer: encodes them.
    data: limits and tags.
    mask_prompt: whether only the assistant's turns carry loss.
    all_turns: whether all of them do, and not the completion alone.
  """
  pairs = encode_demonstrations(demonstrations, tokenizer, data)
  spans: Sequence[Sequence[tuple[int, int]]] = [()] * len(pairs)
  if all_turns and mask_prompt:
    prompts = [prompt for prompt, _ in pairs]
    spans = encode_earlier_replies(demonstrations, prompts, tokenizer, data)
  return [
    with_loss_weights(prompt, completion, mask_prompt=mask_prompt, spans=span)
    for (prompt, completion), span in zip(pairs, spans, strict=True)
  ]


def with_loss_weights(
  prompt: np.ndarray,
  completion: np.ndarray,
  *,
  mask_prompt: bool = True,
  spans: Sequence[tuple[int, int]] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """Concatenates a prompt and a completion, and weights their tokens.

  Args:
    prompt: [p] token ids.
    completion: [c] token ids.
    mask_prompt: whether the prompt's tokens have weight 0. The first token has
      weight 0 in any case, because nothing precedes it.
    spans: [start, stop) positions in the prompt that have weight 1 though.

  Returns:
    ids [p + c] int32 and weights [p + c] float32.
  """
  ids = np.concatenate([_int32(prompt), _int32(completion)])
  weights = np.ones(len(ids), np.float32)
  weights[: len(prompt) if mask_prompt else 1] = 0.0
  for start, stop in spans:
    weights[start:stop] = 1.0
  weights[:1] = 0.0
  return ids, weights
