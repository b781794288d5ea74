"""Applies the limits on the tokens of prompts and replies."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
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


def drop_long(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> tuple[list[_P], Drops]:
  """Drops prompts of more than `data.max_prompt_tokens`, tags included."""
  encoded = encoding.encode_prompts([r.turns for r in records], tokenizer, data)
  stay: list[_P] = []
  drops = Drops()
  for record, ids in zip(records, encoded, strict=True):
    drops.longest = max(drops.longest, len(ids))
    if len(ids) > data.max_prompt_tokens:
      drops.drop(LONG, record)
    else:
      stay.append(record)
  return stay, drops


def drop_cut(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> tuple[list[_P], Drops]:
  """Counts replies that are cut, and drops what the cut makes equal.

  Completions of a ranking may differ, but be equal up to
  `data.max_response_tokens`: then the best of them stays. A ranking with a
  single completion or rank left is dropped.
  """
  texts_of = [records_lib.replies(r) for r in records]
  encoded = iter(
    encoding.encode_untruncated(
      [c for r in texts_of for c in r], tokenizer, data
    )
  )
  stay: list[_P] = []
  drops = Drops()
  for record, texts in zip(records, texts_of, strict=True):
    ids = [next(encoded) for _ in texts]
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
