"""Curation as in the paper's appendix A. Pure: records to records.

Every function returns (the records that stay, `Drops` with the number of those
that go).
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import drops as drops_lib
from instructgpt_jax.data import transforms
from instructgpt_jax.data.drops import (
  CUT_COMPLETIONS,
  CUT_EQUAL,
  DUPLICATE,
  LONG,
  PERSONAL,
  PREFIX,
  REPEATED,
  USER_LIMIT,
  Drops,
)
from instructgpt_jax.data.personal import personal_information
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)
from instructgpt_jax.data.splits import Splitter, normalised
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.errors import UserError

_P = TypeVar("_P", Prompt, Demonstration, Ranking)
_R = TypeVar("_R", Prompt, Demonstration, Ranking, Document)
_Record = Prompt | Demonstration | Ranking
# A beginning that this many prompts share is a template, no repetition.
TEMPLATE_PROMPTS = 10
# One user with this share of the records is not one person.
_CONSTANT_SHARE, _CONSTANT_RECORDS = 0.9, 10
_PLACEHOLDERS = frozenset(
  """anonymous anon unknown none null nil nan na n/a undefined default guest
  nobody - -1 ? user""".split()
)


# Duplicates.


def _normalised(turns: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
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
      identity: object = _normalised(record.turns)
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
    *earlier, (_, last) = _normalised(prompt.turns)
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


# Users.


def ignore_constant_users(
  records: Sequence[_P],
) -> tuple[list[_P], Drops]:
  """Takes away user ids that do not tell users apart.

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
      prompt = _normalised(record.turns)
      if prompt not in of_user and len(of_user) >= data.max_prompts_per_user:
        drops.drop(USER_LIMIT, record)
        continue
      of_user.add(prompt)
    stay.append(record)
  return stay, drops


def prepare(
  records: Sequence[_P], data: configs.Data
) -> tuple[list[_P], Drops]:
  """The steps that need no other source: dedupe, and the limit per user.

  A limit that the user has set holds for user ids that are ignored later, too.
  """
  stay, drops = deduplicate(records, data)
  if data.is_explicit("max_prompts_per_user"):
    stay, more = limit_users(stay, data)
    drops.add(more)
  stay, more = ignore_constant_users(stay)
  drops.add(more)
  stay, more = limit_users(stay, data)
  drops.add(more)
  return stay, drops


# Token limits.


def drop_long(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> tuple[list[_P], Drops]:
  """Drops prompts of more than `data.max_prompt_tokens`, tags included."""
  encoded = transforms.encode_prompts(
    [r.turns for r in records], tokenizer, data
  )
  stay: list[_P] = []
  drops = Drops()
  for record, ids in zip(records, encoded, strict=True):
    drops.longest = max(drops.longest, len(ids))
    if len(ids) > data.max_prompt_tokens:
      drops.drop(LONG, record)
    else:
      stay.append(record)
  return stay, drops


def replies(record: _Record) -> tuple[str, ...]:
  if isinstance(record, Demonstration):
    return (record.completion,)
  return record.completions if isinstance(record, Ranking) else ()


def drop_cut(
  records: Sequence[_P], tokenizer: Tokenizer, data: configs.Data
) -> tuple[list[_P], Drops]:
  """Counts replies that are cut, and drops what the cut makes equal.

  Of completions of a ranking that are different, but the same up to
  `data.max_response_tokens`, the best stays. A ranking of which one completion
  or one rank stays is dropped.
  """
  texts_of = [replies(r) for r in records]
  encoded = iter(
    transforms.encode_uncut([c for r in texts_of for c in r], tokenizer, data)
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
      rows = _distinct(ids, record.ranks, data.max_response_tokens)
      if len({record.ranks[i] for i in rows}) < 2:
        drops.drop(CUT_EQUAL, record)
        continue
      if len(rows) < len(texts):
        drops.drop(CUT_COMPLETIONS, record, len(texts) - len(rows))
        record = select_completions(record, rows)
    stay.append(record)
  return stay, drops


def select_completions(ranking: Ranking, rows: Sequence[int]) -> Ranking:
  """The ranking of some of its completions."""
  count = len(ranking.completions)
  changes = {}
  # Whatever has one entry for each completion.
  for field in dataclasses.fields(ranking):
    value = getattr(ranking, field.name)
    if field.name != "turns" and isinstance(value, tuple):
      if len(value) == count:
        changes[field.name] = tuple(value[i] for i in rows)
  return dataclasses.replace(ranking, **changes)


def _distinct(
  ids: Sequence[np.ndarray], ranks: Sequence[int], limit: int
) -> list[int]:
  """Completions that stay when those that the cut makes equal go."""
  groups: dict[bytes, list[int]] = collections.defaultdict(list)
  for i, row in enumerate(ids):
    groups[row[:limit].tobytes()].append(i)
  rows = []
  for members in groups.values():
    if len({ids[i].tobytes() for i in members}) > 1:
      members = [min(members, key=lambda i: (ranks[i], i))]
    rows += members
  return sorted(rows)


# Personal information.


def _texts(record: _Record) -> Iterator[str]:
  for turn in record.turns:
    yield turn.text
  yield from replies(record)


def drop_personal(records: Iterable[_P]) -> tuple[list[_P], Drops]:
  """Drops records with personal information in prompt or completions."""
  stay: list[_P] = []
  drops = Drops()
  for record in records:
    kinds = map(personal_information, _texts(record))
    kind = next(filter(None, kinds), "")
    if kind:
      drops.drop(f"{PERSONAL}: {kind}", record)
    else:
      stay.append(record)
  return stay, drops


# All of it.


def curate(
  records: Sequence[_P],
  data: configs.Data,
  tokenizer: Tokenizer | None = None,
  others: Iterable[Sequence[_Record]] = (),
) -> tuple[dict[str, list[_P]], Drops]:
  """Curates one source, in the paper's order.

  Dedupe, limit per user, split, prompts over the token limit and completions
  that the cut makes equal out (where a tokenizer is given), personal
  information out of the train split.

  Args:
    records: of the source.
    data: limits and shares.
    tokenizer: counts tokens.
    others: records of the run's other sources. Splits are decided over all.

  Returns:
    {"train", "valid", "test"} -> records, and what was dropped.
  """
  stay, drops = prepare(records, data)
  # The same steps as in their own curation.
  prepared = [prepare(source, data)[0] for source in others]  # type: ignore[type-var]
  splitter = Splitter(stay, data, prepared)
  splits, more = splitter.split(stay)
  drops.add(more)
  drops.remarks += splitter.remarks
  if tokenizer is not None:
    drops.remarks += _left_out(stay, tokenizer)
  for name in splits:
    if tokenizer is not None and splits[name]:
      splits[name], more = drop_long(splits[name], tokenizer, data)
      drops.add(more)
      splits[name], more = drop_cut(splits[name], tokenizer, data)
      drops.add(more)
  if data.filter_personal:
    splits["train"], more = drop_personal(splits["train"])
    drops.add(more)
  return splits, drops


def _left_out(records: Sequence[_P], tokenizer: Tokenizer) -> list[str]:
  """Returns a sentence about system turns that the template does not write."""
  template = tokenizer.template
  if template is None or template.takes_system:
    return []
  count = sum(r.turns[0].role == "system" for r in records)
  if not count:
    return []
  return [
    f"{count} of {len(records)} records have a system turn, which the model's"
    " chat template leaves out; --data.chat_template=false writes it"
  ]


def require(
  splits: dict[str, list[_R]],
  drops: Drops,
  field: str,
  skipped: Mapping[str, int] | None = None,
) -> list[_R]:
  """The train split, or an error that says where its records went."""
  if splits["train"]:
    return splits["train"]
  largest = drops_lib.causes(drops, skipped or {}, {})[:1]
  went = ", ".join(f"{n} {why}" for why, n in drops.items())
  where = ", ".join(f"{len(v)} in {k}" for k, v in splits.items() if v)
  held = sum(map(len, splits.values()))
  fix = "give records for training: the others are all in valid and test"
  if largest and largest[0].count >= held:
    fix = largest[0].fix
  raise UserError(
    "curation leaves no record for train"
    f" ({'; '.join(filter(None, (went, where))) or 'there were none'})",
    field=field,
    fix=fix,
    code="no_training_records",
  )
