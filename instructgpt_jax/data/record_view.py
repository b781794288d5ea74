"""Records as a model sees them: token ids, and what each of them is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
  """One sequence of tokens of a record."""

  label: str
  runs: list[Run]

  def count(self, use: Use) -> int:
    """Returns the number of tokens of a use."""
    return sum(len(run.ids) for run in self.runs if run.use == use)

  @property
  def total(self) -> int:
    """Returns the number of all tokens."""
    return sum(len(run.ids) for run in self.runs)


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
    runs = _runs(np.asarray(ids), np.asarray(uses), tokenizer)
    return TokenSequence(label, runs)

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


def _runs(ids: np.ndarray, uses: np.ndarray, tokenizer: Tokenizer) -> list[Run]:
  """Groups consecutive tokens of one use."""
  runs = []
  starts = [i for i in range(len(ids)) if not i or uses[i] != uses[i - 1]]
  for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
    text = _text(ids[:stop].tolist(), start, tokenizer)
    runs.append(Run(uses[start], ids[start:stop].tolist(), text))
  return runs


def _text(ids: Sequence[int], start: int, tokenizer: Tokenizer) -> str:
  """Decodes ids[start:], with special tokens by their names."""
  parts = []
  first = start
  for i in range(start, len(ids) + 1):
    name = tokenizer.special_token(ids[i]) if i < len(ids) else ""
    if name or i == len(ids):
      before = len(tokenizer.decode(ids[:first]))
      parts += [tokenizer.decode(ids[:i])[before:], name]
      first = i + 1
  return "".join(parts)
