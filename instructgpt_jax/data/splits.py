"""Splits records into train, valid and test, over all sources of a run."""

from __future__ import annotations

import collections
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from instructgpt_jax import config
from instructgpt_jax.data.drops import HELD_OUT, Drops
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


def normalised(text: str) -> str:
  """Lower case with every run of blanks as one space."""
  return _BLANKS.sub(" ", text).strip().lower()


def _first_user_turn(turns: Sequence[Turn]) -> str:
  return next((normalised(t.text) for t in turns if t.role == "user"), "")


def user_of(record: Record) -> str:
  """Whose prompt it is: the user id, or else the prompt's first user turn.

  So all records of a conversation that start alike belong together.
  """
  if record.user_id:
    return "user:" + record.user_id
  return "prompt:" + _first_user_turn(record.turns)


def hash_fraction(key: str) -> float:
  """A number in [0, 1) that depends on the text alone, on every machine."""
  digest = hashlib.sha256(key.encode("utf-8")).digest()
  return int.from_bytes(digest[:8], "big") / 2.0**64


def _split_name(key: str, data: config.Data) -> str:
  fraction = hash_fraction(key)
  if fraction < data.valid_fraction:
    return "valid"
  if fraction < data.valid_fraction + data.test_fraction:
    return "test"
  return "train"


def split_of(record: Record, data: config.Data) -> str:
  """The split of a record by itself: its file's, or else its user's hash."""
  return record.split or _split_name(user_of(record), data)


def _system(turns: Sequence[Turn]) -> str:
  return normalised("\n".join(t.text for t in turns if t.role == "system"))


def _key_part(role: str, text: str) -> bytes:
  return f"{role}:{len(text)}:{text}\n".encode("utf-8", "surrogatepass")


class Splitter:
  """Decides splits so that no held-out prompt is in a record of another split.

  A record has the split that its file gives, or its user's hash. One without
  either takes the split of the same prompt in another record that has one, and
  else the hash of its first user turn. A prompt that is held out in one record
  is held out everywhere: other records with it are dropped. System turns do
  not tell prompts apart, except where one question is asked under many.
  """

  def __init__(self, records: Iterable[Record], data: config.Data):
    """Reads all records of all sources.

    Args:
      records: of every source of the run.
      data: shares of the splits.
    """
    records = list(records)
    self._data = data
    systems: dict[str, set[str]] = collections.defaultdict(set)
    for record in records:
      first = systems[_first_user_turn(record.turns)]
      if len(first) < _GENERIC_SYSTEMS:
        first.add(_system(record.turns))
    self._generic = {
      turn for turn, found in systems.items() if len(found) >= _GENERIC_SYSTEMS
    }
    self._known: dict[str, int] = {}
    for record in records:
      if record.split or record.user_id:
        self._raise(self._known, record, SPLITS.index(split_of(record, data)))
    self._held: dict[str, int] = {}
    for record in records:
      self._raise(self._held, record, SPLITS.index(self.split_of(record)))

  def _raise(self, ranks: dict[str, int], record: Record, rank: int) -> None:
    *_, key = self._keys(record)
    ranks[key] = max(ranks.get(key, 0), rank)

  def _keys(self, record: Record) -> Iterator[str]:
    """One digest for each prompt of a conversation, the whole one last."""
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
    """The key that each later user turn would have as a prompt by itself."""
    users = [t for t in record.turns if t.role == "user"]
    for turn in users[1:]:
      text = normalised(turn.text)
      if len(text) >= _TELLING_CHARS and text not in self._generic:
        yield hashlib.sha256(_key_part("user", text)).hexdigest()

  def split_of(self, record: Record) -> str:
    """The split of a record of any source."""
    if record.split or record.user_id:
      return split_of(record, self._data)
    keys = list(self._keys(record))
    for key in (keys[-1], keys[0]):
      if key in self._known:
        return SPLITS[self._known[key]]
    first = _first_user_turn(record.turns)
    if first in self._generic:
      first = f"{_system(record.turns)}\n{first}"
    return _split_name("prompt:" + first, self._data)

  def is_held_out_elsewhere(self, record: Record) -> bool:
    """Whether a prompt of the record is held out, but not in its own split."""
    rank = SPLITS.index(self.split_of(record))
    keys = itertools.chain(self._keys(record), self._later_turns(record))
    return any(self._held.get(key, 0) > rank for key in keys)

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


def _parts(text: str) -> Iterator[str]:
  """A long text cut at paragraphs, or at lines where it has none."""
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
  documents: Iterable[Document], data: config.Data
) -> dict[str, list[Document]]:
  """{"train", "valid", "test"} -> documents, by a hash of their text.

  A document whose file gives its split stays whole. Another one of more than
  40,000 characters (a book) is cut at paragraphs into parts of about 20,000,
  each of which is split for itself. With two parts or more, train and (where
  its share is not 0) valid get at least one.
  """
  result: dict[str, list[Document]] = {name: [] for name in SPLITS}
  hashed = 0
  for document in documents:
    if document.split:
      result[document.split].append(document)
      continue
    for part in _parts(document.text):
      hashed += 1
      result[_split_name("text:" + normalised(part), data)].append(
        Document(text=part, origin=document.origin)
      )
  for needy, share in (("train", 1.0), ("valid", data.valid_fraction)):
    if hashed >= 2 and share and not result[needy]:
      donors = [n for n in SPLITS if len(result[n]) > 1]
      if donors:
        donor = max(donors, key=lambda n: len(result[n]))
        result[needy].append(result[donor].pop())
  return result
