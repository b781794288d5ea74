"""Splits records into train, valid and test, over all sources of a run."""

from __future__ import annotations

import collections
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from instructgpt_jax import configs
from instructgpt_jax.data.curation.drops import HELD_OUT, Drops
from instructgpt_jax.data.records import (
  SPLITS,
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)

Record = Prompt | Demonstration | Ranking
_P = TypeVar("_P", Prompt, Demonstration, Ranking)
_BLANKS = re.compile(r"\s+")
# A first question that is asked under at least this many system prompts is an
# instruction for what they hold, and does not identify a prompt.
_GENERIC_SYSTEMS = 5
# A later user turn of this many characters identifies a prompt by itself; a
# shorter one, such as "Go on.", means nothing without what precedes it.
_TELLING_CHARS = 40
PART_CHARS = 20_000
# First user turns of this many records, and of this share of a source, that
# begin as many different conversations do not tell conversations apart. Nor
# does one that nearly all records have.
_SHARED_RECORDS, _SHARED_SHARE, _CONSTANT_SHARE = 10, 0.1, 0.9
_LARGE_SHARE = 0.5  # a prompt of this share of a source is remarked
_SHOWN_CHARS = 60


def normalised(text: str) -> str:
  """Returns a text in lower case, with one space for each run of blanks."""
  return _BLANKS.sub(" ", text).strip().lower()


def _first_user_turn(turns: Sequence[Turn]) -> str:
  return next((normalised(t.text) for t in turns if t.role == "user"), "")


def user_of(record: Record) -> str:
  """Returns the user id, or else the first user turn of the prompt.

  Records with the same first user turn therefore belong together.
  """
  if record.user_id:
    return "user:" + record.user_id
  return "prompt:" + _first_user_turn(record.turns)


def hash_fraction(key: str) -> float:
  """Returns a number in [0, 1) that depends on the text alone."""
  digest = hashlib.sha256(key.encode("utf-8")).digest()
  return int.from_bytes(digest[:8], "big") / 2.0**64


def _split_name(key: str, data: configs.Data) -> str:
  fraction = hash_fraction(key)
  if fraction < data.valid_fraction:
    return "valid"
  if fraction < data.valid_fraction + data.test_fraction:
    return "test"
  return "train"


def split_of(record: Record, data: configs.Data) -> str:
  """Returns the split that a record's file gives, or its user's hash."""
  return record.split or _split_name(user_of(record), data)


def _system(turns: Sequence[Turn]) -> str:
  return normalised("\n".join(t.text for t in turns if t.role == "system"))


def _key_part(role: str, text: str) -> bytes:
  return f"{role}:{len(text)}:{text}\n".encode("utf-8", "surrogatepass")


class Splitter:
  """Assigns splits so that no held-out prompt is in another split.

  A record has the split that its file gives, or its user's hash. One without
  either takes the split of the same prompt in another record that has one, and
  else the hash of its first user turn. Where many conversations begin with one
  user turn, it is the hash of all user turns up to the first that tells them
  apart, or of the whole prompt. A prompt that is held out in one record is held
  out everywhere: other records with it are dropped. So a prompt with which many
  conversations begin is in train. System turns do not tell prompts apart,
  except where one question is asked under many.

  Attributes:
    remarks: sentences about user turns that do not tell the conversations of
      the first source apart.
  """

  def __init__(
    self,
    records: Iterable[Record],
    data: configs.Data,
    others: Iterable[Sequence[Record]] = (),
  ):
    """Reads all records of all sources.

    Args:
      records: of the source that is split.
      data: shares of the splits.
      others: records of the run's other sources.
    """
    sources = [list(records), *others]
    records = [record for source in sources for record in source]
    self._data = data
    self.remarks: list[str] = []
    systems: dict[str, set[str]] = collections.defaultdict(set)
    for record in records:
      first = systems[_first_user_turn(record.turns)]
      if len(first) < _GENERIC_SYSTEMS:
        first.add(_system(record.turns))
    self._generic = {
      turn for turn, texts in systems.items() if len(texts) >= _GENERIC_SYSTEMS
    }
    # User turns, and prompts, with which many conversations begin.
    self._shared_turns: set[str] = set()
    self._shared_prompts: set[str] = set()
    for i, source in enumerate(sources):
      remarks = self._find_shared(source)
      self.remarks += [] if i else remarks
    self._known: dict[str, int] = {}
    for record in records:
      if record.split or record.user_id:
        self._raise(self._known, record, SPLITS.index(split_of(record, data)))
    self._held_out: dict[str, int] = {}
    for record in records:
      self._raise(self._held_out, record, SPLITS.index(self.split_of(record)))

  def _find_shared(self, source: Sequence[Record]) -> list[str]:
    """Finds the user turns with which many conversations of a source begin."""
    hashed = [r for r in source if not (r.split or r.user_id)]
    least = max(_SHARED_RECORDS, _SHARED_SHARE * len(hashed))
    constant = max(_SHARED_RECORDS, _CONSTANT_SHARE * len(hashed))
    large = max(_SHARED_RECORDS, _LARGE_SHARE * len(hashed))
    firsts = [_first_user_turn(r.turns) for r in hashed]
    counts = collections.Counter(firsts)
    frequent = {t: list[Record]() for t, n in counts.items() if n >= least}
    for first, record in zip(firsts, hashed, strict=True):
      if first in frequent:
        frequent[first].append(record)
    pending = [(0, group) for group in frequent.values()]
    remarks = []
    shared: dict[str, list[Record]] = collections.defaultdict(list)
    while pending:
      depth, group = pending.pop()
      begun: dict[str, list[Record]] = collections.defaultdict(list)
      for record in group:
        beginnings = list(self._beginnings(record))
        if depth < len(beginnings):
          begun[beginnings[depth]].append(record)
      for beginning, same in begun.items():
        if len(same) < least:
          continue
        prompts = collections.Counter(k for r in same for k in self._keys(r))
        different = len({list(self._keys(r))[-1] for r in same})
        if len(same) < constant and different < _SHARED_RECORDS:
          if len(same) >= large and not depth:
            remarks.append(_large_remark(same, len(source)))
          continue
        self._shared_turns.add(beginning)
        self._shared_prompts.update(k for k, n in prompts.items() if n >= least)
        pending.append((depth + 1, same))
        if not depth:
          shared[_first_user_turn(same[0].turns)] += same
    for same in shared.values():
      different = len({list(self._keys(r))[-1] for r in same})
      remarks.append(_shared_remark(same, different, len(source)))
    return remarks

  def _beginnings(self, record: Record) -> Iterator[str]:
    """Yields a digest of the user turns up to each user turn of a prompt."""
    digest = hashlib.sha256()
    if _first_user_turn(record.turns) in self._generic:
      digest.update(_key_part("system", _system(record.turns)))
    for turn in record.turns:
      if turn.role == "user":
        digest.update(_key_part(turn.role, normalised(turn.text)))
        yield digest.hexdigest()

  def _raise(self, ranks: dict[str, int], record: Record, rank: int) -> None:
    *_, key = self._keys(record)
    ranks[key] = max(ranks.get(key, 0), rank)

  def _keys(self, record: Record) -> Iterator[str]:
    """Yields a digest of each prompt of a conversation, the whole one last."""
    generic = _first_user_turn(record.turns) in self._generic
    last = max(
      (i for i, t in enumerate(record.turns) if t.role == "user"),
      default=len(record.turns) - 1,
    )
    # A running digest: texts of all prefixes would be quadratic.
    digest = hashlib.sha256()
    for i, turn in enumerate(record.turns):
      if turn.role != "system" or generic:
        digest.update(_key_part(turn.role, normalised(turn.text)))
      if (turn.role == "user" and i < last) or i == len(record.turns) - 1:
        yield digest.hexdigest()

  def _later_turns(self, record: Record) -> Iterator[str]:
    """Yields the key that each later user turn would have as a prompt."""
    users = [t for t in record.turns if t.role == "user"]
    for turn in users[1:]:
      text = normalised(turn.text)
      if len(text) >= _TELLING_CHARS and text not in self._generic:
        yield hashlib.sha256(_key_part("user", text)).hexdigest()

  def split_of(self, record: Record) -> str:
    """Returns the split of a record of any source."""
    if record.split or record.user_id:
      return split_of(record, self._data)
    keys = list(self._keys(record))
    shared = [b in self._shared_turns for b in self._beginnings(record)]
    telling = [key for key in keys if key not in self._shared_prompts]
    for key in (keys[-1], *telling[:1]):
      if key in self._known:
        return SPLITS[self._known[key]]
    if shared and all(shared) and keys[-1] in self._shared_prompts:
      return "train"
    return _split_name(self.group_of(record), self._data)

  def group_of(self, record: Record) -> str:
    """Returns the key by which a record is split.

    It is that of `user_of`, except for beginnings that many conversations
    share: there it also depends on the turns that follow.
    """
    if record.user_id:
      return user_of(record)
    first = _first_user_turn(record.turns)
    beginnings = list(self._beginnings(record))
    if beginnings and beginnings[0] in self._shared_turns:
      telling = [b for b in beginnings if b not in self._shared_turns]
      *_, whole = self._keys(record)
      return "prompt:" + (telling[0] if telling else whole)
    if first in self._generic:
      first = f"{_system(record.turns)}\n{first}"
    return "prompt:" + first

  def is_held_out_elsewhere(self, record: Record) -> bool:
    """Returns whether another record holds out a prompt of this record."""
    rank = SPLITS.index(self.split_of(record))
    keys = itertools.chain(self._keys(record), self._later_turns(record))
    return any(self._held_out.get(key, 0) > rank for key in keys)

  def split(self, records: Iterable[_P]) -> tuple[dict[str, list[_P]], Drops]:
    """Splits the records of one source.

    Returns:
      {"train", "valid", "test"} -> records, and what is dropped because its
      prompt is held out in another record.
    """
    result: dict[str, list[_P]] = {name: [] for name in SPLITS}
    drops = Drops()
    for record in records:
      if self.is_held_out_elsewhere(record):
        drops.drop(HELD_OUT, record)
      else:
        result[self.split_of(record)].append(record)
    return result, drops


def _shared_remark(same: Sequence[Record], different: int, total: int) -> str:
  """Returns a sentence about conversations that begin with one user turn."""
  text, count = _shown_turn(same), f"{len(same)} of {total} records"
  if different == 1:
    return f"{count} have the prompt {text}, so they are all in train"
  return (
    f"{count} begin with the user turn {text}, which does not tell"
    " conversations apart: they are split by what follows it"
  )


def _large_remark(same: Sequence[Record], total: int) -> str:
  return (
    f"{len(same)} of {total} records begin with the user turn"
    f" {_shown_turn(same)}, and are all in one split"
  )


def _shown_turn(records: Sequence[Record]) -> str:
  text = _first_user_turn(records[0].turns)
  return repr(text[:_SHOWN_CHARS] + "…" * (len(text) > _SHOWN_CHARS))


def _parts(text: str) -> Iterator[str]:
  """Yields parts of a long text, cut at paragraphs, or else at lines."""
  while len(text) > 2 * PART_CHARS:
    cut = text.rfind("\n\n", PART_CHARS // 2, PART_CHARS) + 2
    if cut < 2:
      cut = text.rfind("\n", PART_CHARS // 2, PART_CHARS) + 1
    cut = cut or PART_CHARS
    yield text[:cut]
    text = text[cut:]
  if text.strip():
    yield text


def split_documents(
  documents: Iterable[Document], data: configs.Data, *, fill: bool = True
) -> dict[str, list[Document]]:
  """Splits documents into train, valid and test by a hash of their text.

  A document whose file gives its split stays whole. Another one of more than
  40,000 characters (a book) is cut at paragraphs into parts of about 20,000,
  and each part is split for itself. With two parts or more, train and (where
  its share is not 0) valid get at least one.

  Args:
    documents: the documents.
    data: shares of the splits.
    fill: whether an empty train or valid gets a part of another split; False
      for documents that are a part of a corpus.
  """
  result: dict[str, list[Document]] = {name: [] for name in SPLITS}
  movable: dict[str, list[int]] = {name: [] for name in SPLITS}
  for document in documents:
    if document.split:
      result[document.split].append(document)
      continue
    for part in _parts(document.text):
      name = _split_name("text:" + normalised(part), data)
      movable[name].append(len(result[name]))
      result[name].append(Document(text=part, origin=document.origin))
  hashed = sum(map(len, movable.values())) if fill else 0
  for needy, share in (("train", 1.0), ("valid", data.valid_fraction)):
    if hashed >= 2 and share and not result[needy]:
      donors = [n for n in SPLITS if movable[n] and len(result[n]) > 1]
      if donors:
        donor = max(donors, key=lambda n: len(movable[n]))
        movable[needy].append(0)
        result[needy].append(result[donor].pop(movable[donor].pop()))
  return result
