"""Drops repeated records and nearly equal prompts."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

from instructgpt_jax import configs
from instructgpt_jax.data.curation.drops import (
  DUPLICATE,
  PREFIX,
  REPEATED,
  Drops,
)
from instructgpt_jax.data.curation.splits import normalised
from instructgpt_jax.data.records import (
  Demonstration,
  Prompt,
  Ranking,
  Turn,
)

_P = TypeVar("_P", Prompt, Demonstration, Ranking)
# A beginning that this many prompts share is a template, no repetition.
TEMPLATE_PROMPTS = 10


def normalise_turns(turns: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
  return tuple((t.role, normalised(t.text)) for t in turns)


def deduplicate(
  records: Iterable[_P], data: configs.Data
) -> tuple[list[_P], Drops]:
  """Drops records that are repeated, and prompts that are nearly the same.

  Demonstrations and rankings are dropped only when another one is the same in
  everything. For prompts see `near_duplicates`. The first of a group stays.
  """
  stay: list[_P] = []
  prompts: list[Prompt] = []
  drops, identities = Drops(), set()
  for record in records:
    if isinstance(record, Prompt):
      identity: object = normalise_turns(record.turns)
    else:
      identity = dataclasses.replace(record, origin="")
    if identity in identities:
      is_prompt = isinstance(record, Prompt)
      drops.drop(REPEATED if is_prompt else DUPLICATE, record)
      continue
    identities.add(identity)
    stay.append(record)
    if isinstance(record, Prompt):
      prompts.append(record)
  if data.common_prefix_chars and prompts:
    repeated, templates = near_duplicates(prompts, data.common_prefix_chars)
    stay = [r for r in stay if id(r) not in repeated]
    for prompt in repeated.values():
      drops.drop(PREFIX, prompt)
    drops.templates += templates
  return stay, drops


def near_duplicates(
  prompts: Sequence[Prompt], chars: int
) -> tuple[dict[int, Prompt], int]:
  """Finds prompts whose last turn begins like that of an earlier prompt.

  All turns before the last must be equal. A beginning that `TEMPLATE_PROMPTS`
  prompts or more have in common is a template: these are compared from where
  they differ. Texts are compared in lower case with single spaces.

  Args:
    prompts: distinct prompts.
    chars: number of characters from which on two beginnings count as one.

  Returns:
    {id: prompt} of those that repeat another, in their order, and the number of
    prompts that have a template.
  """
  groups: dict[object, list[tuple[int, str]]] = collections.defaultdict(list)
  for i, prompt in enumerate(prompts):
    *earlier, (_, last) = normalise_turns(prompt.turns)
    groups[tuple(earlier)].append((i, last))
  repeated: set[int] = set()
  in_templates: set[int] = set()
  pending = [(members, 0) for members in groups.values()]
  while pending:
    members, start = pending.pop()
    beginnings: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
    for i, text in members:
      beginnings[text[start : start + chars]].append((i, text))
    for beginning, same in beginnings.items():
      if len(beginning) < chars or len(same) == 1:
        continue
      if len(same) >= TEMPLATE_PROMPTS:
        in_templates.update(i for i, _ in same)
        shared = os.path.commonprefix([text for _, text in same])
        pending.append((same, len(shared)))
      else:
        repeated.update(i for i, _ in same[1:])
  return {id(prompts[i]): prompts[i] for i in sorted(repeated)}, len(
    in_templates
  )
