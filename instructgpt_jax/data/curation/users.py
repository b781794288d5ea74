"""Limits how many prompts one user has."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

from instructgpt_jax import configs
from instructgpt_jax.data.curation.dedupe import normalise_turns
from instructgpt_jax.data.curation.drops import (
  USER_LIMIT,
  Drops,
)
from instructgpt_jax.data.records import (
  Demonstration,
  Prompt,
  Ranking,
)

_P = TypeVar("_P", Prompt, Demonstration, Ranking)
# One user with this share of the records is not one person.
_CONSTANT_SHARE, _CONSTANT_RECORDS = 0.9, 10
_PLACEHOLDERS = frozenset(
  """anonymous anon unknown none null nil nan na n/a undefined default guest
  nobody - -1 ? user""".split()
)


def ignore_constant_users(
  records: Sequence[_P],
) -> tuple[list[_P], Drops]:
  """Removes user ids that do not distinguish users.

  These are words such as "anonymous", and an id that nearly all records have.
  The records then count as records without a user id; a remark says so.
  """
  counts = collections.Counter(r.user_id for r in records if r.user_id)
  drops = Drops()
  ignored = {u for u in counts if u.strip().lower() in _PLACEHOLDERS | {""}}
  people = [(u, n) for u, n in counts.most_common() if u not in ignored]
  for user, count in people[:1]:
    if count >= max(_CONSTANT_RECORDS, _CONSTANT_SHARE * len(records)):
      ignored.add(user)
    elif count >= max(_CONSTANT_RECORDS, len(records) / 2):
      drops.remarks.append(
        f"one user, {user!r}, has {count} of {len(records)} records, which are"
        " all in one split"
      )
  for user in sorted(ignored):
    drops.remarks.append(
      f"{counts[user]} of {len(records)} records have the user_id {user!r},"
      " which does not tell users apart: they are split by prompt, and"
      " data.max_prompts_per_user does not limit them"
    )
  return [
    dataclasses.replace(r, user_id="") if r.user_id in ignored else r
    for r in records
  ], drops


def limit_users(
  records: Iterable[_P], data: configs.Data
) -> tuple[list[_P], Drops]:
  """Keeps the first `data.max_prompts_per_user` distinct prompts of each user.

  Records without a user id have no limit.
  """
  prompts: dict[str, set[object]] = collections.defaultdict(set)
  stay: list[_P] = []
  drops = Drops()
  for record in records:
    if record.user_id:
      of_user = prompts[record.user_id]
      prompt = normalise_turns(record.turns)
      if prompt not in of_user and len(of_user) >= data.max_prompts_per_user:
        drops.drop(USER_LIMIT, record)
        continue
      of_user.add(prompt)
    stay.append(record)
  return stay, drops
