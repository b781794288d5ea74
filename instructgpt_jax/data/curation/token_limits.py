"""Applies the limits on the tokens of prompts and replies."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data import records as records_lib
from instructgpt_jax.data.curation.drops import (
  CUT_COMPLETIONS,
  CUT_EQUAL,
  LONG,
  Drops,
)
from instructgpt_jax.data.records import (
  Demonstration,
  Prompt,
  Ranking,
)
from instructgpt_jax.data.tokenizers import Tokenizer

_P = TypeVar("_P", Prompt, Demonstration, Ranking)
_Record = Prompt | Demonstration | Ranking
_CHUNK = 4096  # records that are encoded in one call: ids take much memory


def drop_long(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> tuple[list[_P], Drops]:
  """Drops prompts of more than `data.max_prompt_tokens`, tags included."""
  stay: list[_P] = []
  drops = Drops()
  for chunk in chunks(records):
    turns = [record.turns for record in chunk]
    encoded = encoding.encode_prompts(turns, tokenizer, data)
    for record, ids in zip(chunk, encoded, strict=True):
      drops.longest = max(drops.longest, len(ids))
      if len(ids) > data.max_prompt_tokens:
        drops.drop(LONG, record)
      else:
        stay.append(record)
  return stay, drops


def chunks(records: Sequence[_P]) -> Iterator[Sequence[_P]]:
  """Yields a few records at a time."""
  for start in range(0, len(records), _CHUNK):
    yield records[start : start + _CHUNK]


def drop_cut(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> tuple[list[_P], Drops]:
  """Counts replies that are cut, and drops what the cut makes equal.

  Completions of a ranking may differ, but be equal up to
  `data.max_response_tokens`: then the best of them stays. A ranking with a
  single completion or rank left is dropped.
  """
  stay: list[_P] = []
  drops = Drops()
  for record, texts, ids in _encode_replies(records, tokenizer, data):
    cut = sum(len(i) > data.max_response_tokens for i in ids)
    drops.replies += len(texts)
    drops.cut += cut
    if cut and drops.cut_example is None:
      drops.cut_example = record
    if isinstance(record, Ranking) and cut:
      indices = _distinct(ids, record.ranks, data.max_response_tokens)
      if len({record.ranks[i] for i in indices}) < 2:
        drops.drop(CUT_EQUAL, record)
        continue
      if len(indices) < len(texts):
        drops.drop(CUT_COMPLETIONS, record, len(texts) - len(indices))
        record = select_completions(record, indices)
    stay.append(record)
  return stay, drops


def _encode_replies(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> Iterator[tuple[_P, tuple[str, ...], list[np.ndarray]]]:
  """Yields each record with its replies, as texts and as whole token ids."""
  for chunk in chunks(records):
    texts_of = [records_lib.replies(r) for r in chunk]
    texts = [text for replies in texts_of for text in replies]
    encoded = iter(encoding.encode_untruncated(texts, tokenizer, data))
    for record, replies in zip(chunk, texts_of, strict=True):
      yield record, replies, [next(encoded) for _ in replies]


def select_completions(ranking: Ranking, indices: Sequence[int]) -> Ranking:
  """Returns a ranking of some of its completions, by index."""
  count = len(ranking.completions)
  changes = {}
  # Whatever has one entry for each completion.
  for field in dataclasses.fields(ranking):
    value = getattr(ranking, field.name)
    if field.name != "turns" and isinstance(value, tuple):
      if len(value) == count:
        changes[field.name] = tuple(value[i] for i in indices)
  return dataclasses.replace(ranking, **changes)


def _distinct(
  ids: Sequence[np.ndarray], ranks: Sequence[int], limit: int
) -> list[int]:
  """Returns the indices of completions that differ after truncation."""
  groups: dict[bytes, list[int]] = collections.defaultdict(list)
  for i, completion in enumerate(ids):
    groups[completion[:limit].tobytes()].append(i)
  indices = []
  for members in groups.values():
    if len({ids[i].tobytes() for i in members}) > 1:
      members = [min(members, key=lambda i: (ranks[i], i))]
    indices += members
  return sorted(indices)
