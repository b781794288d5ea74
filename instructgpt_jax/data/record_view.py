"""Records as a model sees them: token ids, and what each of them is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, records
from instructgpt_jax.data.tokenizers import Tokenizer

Use = Literal["context", "loss", "score", "cut"]
USES: dict[Use, str] = {
  "context": "is read, without loss",
  "loss": "carries loss",
  "score": "is where the reward model's score is read",
  "cut": "is cut off: no model sees it",
}


class Run(NamedTuple):
  """Consecutive tokens of one use, and their text."""

  use: Use
  ids: list[int]
  text: str


class TokenSequence(NamedTuple):
  """One sequence of tokens of a record.

  Attributes:
    label: what it is, such as "rank 1".
    ids: its token ids.
    uses: the use of each token.
    tokenizer: decodes them.
  """

  label: str
  ids: list[int]
  uses: list[Use]
  tokenizer: Tokenizer

  def count(self, use: Use) -> int:
    """Returns the number of tokens of a use."""
    return self.uses.count(use)

  def runs(self, start: int, stop: int) -> list[Run]:
    """Returns the tokens [start, stop) in runs of one use."""
    uses = self.uses
    starts = [
      i for i in range(start, stop) if i == start or uses[i] != uses[i - 1]
    ]
    return [
      Run(uses[a], self.ids[a:b], self._text(a, b))
      for a, b in zip(starts, [*starts[1:], stop], strict=True)
    ]

  def _text(self, start: int, stop: int) -> str:
    """Decodes the tokens [start, stop), special tokens by their names."""
    ids, tokenizer = self.ids, self.tokenizer
    parts = []
    first = start
    for i in range(start, stop + 1):
      name = tokenizer.special_token(ids[i]) if i < stop else ""
      if name or i == stop:
        before = len(tokenizer.decode(ids[:first]))
        parts += [tokenizer.decode(ids[:i])[before:], name]
        first = i + 1
    return "".join(parts)


def sequences(
  record: records.Record,
  tokenizer: Tokenizer,
  data: configs.Data,
  section: configs.Sft,
) -> Iterator[TokenSequence]:
  """Yields the token sequences of a record.

  A document is one sequence. Other records have one for their prompt; so has
  each completion of a ranking, the best first. The completion of a
  demonstration follows its prompt in one sequence.

  Args:
    record: the record.
    tokenizer: encodes it.
    data: limits and tags.
    section: says which tokens of a demonstration carry loss.
  """

  def sequence(label: str, ids: Any, uses: Any) -> TokenSequence:
    ids, uses = np.asarray(ids).tolist(), np.asarray(uses).tolist()
    return TokenSequence(label, ids, uses, tokenizer)

  if isinstance(record, records.Document):
    ids = encoding.encode_documents([record.text], tokenizer)[0]
    ids = np.append(ids, tokenizer.document_end_id)
    uses = np.full(len(ids), "loss", object)
    uses[0] = "context"  # Nothing precedes it.
    yield sequence("", ids, uses)
    return
  if isinstance(record, records.Demonstration):
    yield sequence("", *_demonstration(record, tokenizer, data, section))
    return
  prompt = prompt_ids(record, tokenizer, data)
  yield sequence("prompt", prompt, np.full(len(prompt), "context", object))
  if isinstance(record, records.Ranking):
    replies = sorted(zip(record.ranks, record.completions, strict=True))
    for rank, completion in replies:
      ids, length = _completion(completion, tokenizer, data)
      uses = np.full(len(ids), "context", object)
      uses[length - 1], uses[length:] = "score", "cut"
      yield sequence(f"rank {rank}", ids, uses)


def prompt_ids(
  record: records.Prompt | records.Demonstration | records.Ranking,
  tokenizer: Tokenizer,
  data: configs.Data,
) -> np.ndarray:
  """Returns the token ids of a record's prompt, as a limit counts them."""
  return encoding.encode_prompts([record.turns], tokenizer, data)[0]


def _demonstration(
  record: records.Demonstration,
  tokenizer: Tokenizer,
  data: configs.Data,
  section: configs.Sft,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids and uses of a demonstration, with what is cut off."""
  ((ids, weights),) = encoding.encode_examples(
    [record],
    tokenizer,
    data,
    mask_prompt=section.mask_prompt,
    all_turns=section.loss_turns == "all",
  )
  whole, length = _completion(record.completion, tokenizer, data)
  uses = np.where(weights > 0, "loss", "context").astype(object)
  rest = np.full(len(whole) - length, "cut", object)
  return np.append(ids, whole[length:]), np.append(uses, rest)


def _completion(
  completion: str, tokenizer: Tokenizer, data: configs.Data
) -> tuple[np.ndarray, int]:
  """Returns the ids of a whole completion, and how many of them remain."""
  whole = encoding.encode_untruncated([completion], tokenizer, data)[0]
  return whole, min(len(whole), data.max_response_tokens)
