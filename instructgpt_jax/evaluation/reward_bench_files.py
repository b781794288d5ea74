"""Reads what a reward model is tested on: RewardBench 1 and 2, comparisons.

RewardBench 1 (arXiv:2403.13787) has pairs: `prompt`, `chosen`, `rejected` and
`subset`. RewardBench 2 (arXiv:2506.01937) has lists of answers in `chosen` and
`rejected`. Its subset Ties has several correct answers to a prompt, and an `id`
that is ref:N or tied:N.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from instructgpt_jax.data import reading
from instructgpt_jax.data.formats.json_values import is_null
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.turns import read_prompt, user
from instructgpt_jax.data.reading import values as values_lib
from instructgpt_jax.data.records import Ranking, Turn
from instructgpt_jax.evaluation import record_files

Kind = Literal["rewardbench", "rewardbench2", "comparisons"]
KINDS: tuple[Kind, ...] = ("rewardbench", "rewardbench2", "comparisons")
TIES = "Ties"  # subset of RewardBench 2
_TIES_ID = re.compile(r"(ref|tied):(\d+)")


@dataclasses.dataclass(frozen=True)
class Item:
  """A prompt with ranked answers.

  Attributes:
    turns: the prompt.
    answers: the answers; those of RewardBench begin with the correct ones.
    ranks: rank of each answer; 1 is best, equal ranks are ties.
    subset: its subset; the file of a comparison.
    number: `id` of the record; file:line without one.
  """

  turns: tuple[Turn, ...]
  answers: tuple[str, ...]
  ranks: tuple[int, ...]
  subset: str
  number: str

  @property
  def num_correct(self) -> int:
    """Number of answers with the best rank."""
    return self.ranks.count(min(self.ranks))


class Benchmark(NamedTuple):
  """The items of a file.

  Attributes:
    kind: its format.
    items: the items.
    notes: lines that say what of the file is not used.
    warnings: those about more than a tenth of it.
  """

  kind: Kind
  items: list[Item]
  notes: list[str]
  warnings: tuple[str, ...] = ()


def read_benchmark(source: str) -> Benchmark:
  """Reads RewardBench 1 or 2, or comparisons of any format.

  Args:
    source: files of JSON lines, JSON, CSV or Parquet, as `reading.expand` lists
      them; the first record decides which format they have.

  Raises:
    UserError: a file cannot be read, or holds no usable record.
  """
  paths = reading.expand(source)
  kind = _recognise(paths[0])
  if kind == "comparisons":
    rankings, report = reading.read_rankings(source)
    notes = str(report).splitlines() if report.skipped or report.unused else []
    return Benchmark(kind, [_ranking_item(r) for r in rankings], notes)
  parse = _parse_pair if kind == "rewardbench" else _parse_lists
  items: list[Item] = []
  notes: list[str] = []
  warnings: list[str] = []
  for path in paths:
    records = record_files.read_records(path, parse, _FIELDS)
    items += records.items
    notes += record_files.show_left_out(path, records)
    warnings += record_files.find_warnings(path, records)
  return Benchmark(kind, items, notes, tuple(warnings))


_FIELDS = (
  "prompt", "chosen", "rejected", "subset", "id", "chosen_model",
  "rejected_model", "models", "num_correct", "num_incorrect",
  "total_completions", "additional_metadata",
)  # fmt: skip


def _recognise(path: str) -> Kind:
  """Returns the format of a file's first record."""
  values = values_lib.read_values(path, collections.Counter())
  first = None if isinstance(values, str) else next(iter(values), (0, None))[1]
  names = {"prompt", "chosen", "rejected", "subset"}
  if not isinstance(first, dict) or not first.keys() >= names:
    return "comparisons"
  texts = [first["chosen"], first["rejected"]]
  if all(isinstance(value, str) for value in texts):
    return "rewardbench"
  are_lists = all(
    isinstance(value, list) and all(isinstance(text, str) for text in value)
    for value in texts
  )
  return "rewardbench2" if are_lists else "comparisons"


def _parse_pair(obj: Mapping[str, Any], reader: RecordReader) -> Item:
  answers = reader.get(obj, "chosen"), reader.get(obj, "rejected")
  return _item(obj, answers, (1, 2), reader)


def _parse_lists(obj: Mapping[str, Any], reader: RecordReader) -> Item:
  chosen, rejected = (
    _texts(obj, name, reader) for name in ("chosen", "rejected")
  )
  for name, texts in (("num_correct", chosen), ("num_incorrect", rejected)):
    if not is_null(obj.get(name)) and reader.whole(obj, name) != len(texts):
      reader.fail(
        f"is {obj[name]}, but there are {len(texts)} answers", name,
        "give the file as it is published", "other_count",
      )  # fmt: skip
  ranks = (1,) * len(chosen) + (2,) * len(rejected)
  item = _item(obj, (*chosen, *rejected), ranks, reader)
  if item.subset == TIES and not _TIES_ID.fullmatch(item.number):
    reader.fail(
      f"{item.number!r} is not ref:N or tied:N", "id",
      "give the file as it is published", "bad_id",
    )  # fmt: skip
  if item.subset != TIES and len(chosen) != 1:
    reader.fail(
      f"{len(chosen)} answers are correct, and only {TIES} has several",
      "chosen", f"give one answer, or the subset {TIES}", "other_count",
    )  # fmt: skip
  return item


def _texts(
  obj: Mapping[str, Any], name: str, reader: RecordReader
) -> list[str]:
  texts = reader.get(obj, name, list)
  if not texts or not all(isinstance(text, str) for text in texts):
    reader.fail(
      "a list of texts is expected", name, "write it as a list of answers",
      "wrong_type",
    )  # fmt: skip
  return texts


def _item(
  obj: Mapping[str, Any],
  answers: tuple[str, ...],
  ranks: tuple[int, ...],
  reader: RecordReader,
) -> Item:
  prompt = obj.get("prompt")
  if isinstance(prompt, list):
    turns = read_prompt(prompt, "prompt", reader)
  else:  # A text is one turn, even where it quotes a conversation.
    turns = user(reader.text(obj, "prompt"))
  number = reader.identity(obj, "id") or reader.origin
  return Item(turns, answers, ranks, reader.text(obj, "subset"), number)


def _ranking_item(ranking: Ranking) -> Item:
  path = ranking.origin.rpartition(":")[0]
  return Item(
    ranking.turns, ranking.completions, ranking.ranks, path, ranking.origin
  )


def prompt_numbers(items: Sequence[Item]) -> list[int]:
  """Returns the number of each item's prompt among the distinct ones."""
  numbers: dict[tuple[Turn, ...], int] = {}
  return [numbers.setdefault(item.turns, len(numbers)) for item in items]


def tie_group(item: Item) -> tuple[str, int]:
  """Returns the kind ("ref" or "tied") and number of an item of Ties."""
  match = _TIES_ID.fullmatch(item.number)
  assert match is not None
  return match[1], int(match[2])
