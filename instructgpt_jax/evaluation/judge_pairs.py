"""Pairs of answers for a judge: two models' answers, and pairs with labels.

A label is the share of the first answer: 1 if it is better, ½ for a tie, 0 if
the second is better.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.json_values import is_null
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import instructed
from instructgpt_jax.data.formats.turns import read_prompt
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import record_files

_NO_ANSWER = "prompts without an answer"
_VOTE = re.compile(r"annotator\d+")


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to a prompt.

  Attributes:
    prompt: the prompt.
    first: an answer.
    second: the other answer.
    labels: what each annotator says: the share of the first answer.
    origin: file:line.
    annotators: names of who labelled it, if the file says so.
  """

  prompt: str
  first: str
  second: str
  labels: tuple[float, ...] = ()
  origin: str = ""
  annotators: tuple[str, ...] = ()

  @property
  def majority(self) -> float:
    """The label of more than half of the annotators; ½ without one."""
    return next(
      (v for v in (1.0, 0.0) if 2 * self.labels.count(v) > len(self.labels)),
      0.5,
    )


class PairFile(NamedTuple):
  """Pairs, and the lines that say what of their files is not used.

  Attributes:
    pairs: the pairs.
    notes: a line about each kind of record without use.
    warnings: those about more than a tenth of a file.
  """

  pairs: list[Pair]
  notes: list[str]
  warnings: tuple[str, ...] = ()


class _Answer(NamedTuple):
  prompt: str
  completion: str
  origin: str
  ended: bool


def read_answer_pairs(
  answers: str, against: str, *, allow_unmatched: bool = False
) -> PairFile:
  """Pairs the answers of two files by their prompts.

  The i-th answer of one file to a prompt goes with the i-th of the other.

  Args:
    answers: records with `prompt` and `completion`, as
      `instructgpt_jax.chat --output` writes them.
    against: the same of the other model.
    allow_unmatched: whether more than half of a file may have no counterpart.

  Raises:
    UserError: a file cannot be read; `no_pairs`, no prompt is in both;
      `unmatched`, more than half of the answers have no counterpart.
  """
  files = {path: _read_answers(path) for path in (answers, against)}
  notes = [
    line
    for path, records in files.items()
    for line in record_files.show_left_out(path, records)
  ]
  others = collections.defaultdict(list)
  for answer in files[against].items:
    others[answer.prompt].append(answer)
  pairs = []
  for answer in files[answers].items:
    if others[answer.prompt]:
      other = others[answer.prompt].pop(0)
      pairs.append(
        Pair(answer.prompt, answer.completion, other.completion,
             origin=answer.origin)
      )  # fmt: skip
  if not pairs:
    raise UserError(
      f"has no prompt of {against}",
      file=answers,
      field="--answers",
      fix="give answers of two models to the same prompts",
      code="no_pairs",
    )
  totals = {path: len(records.items) for path, records in files.items()}
  unmatched, warnings = _describe_unmatched(totals, len(pairs), allow_unmatched)
  for path, records in files.items():
    cut = sum(not answer.ended for answer in records.items)
    if cut:
      unmatched.append(f"{path}: {cut} answers were cut at their length limit")
    warnings += record_files.find_warnings(path, records)
  return PairFile(pairs, notes + unmatched, tuple(warnings))


def _describe_unmatched(
  totals: Mapping[str, int], matched: int, allow_unmatched: bool
) -> tuple[list[str], list[str]]:
  """Returns lines about the answers of files without a counterpart.

  Returns:
    The lines, and those that are warnings.

  Raises:
    UserError: `unmatched`.
  """
  lines, warnings = [], []
  for path, total in totals.items():
    unmatched = total - matched
    text = f"{unmatched} of {total} answers have no counterpart"
    if 2 * unmatched > total and not allow_unmatched:
      raise UserError(
        text,
        file=path,
        fix="give answers to the same prompts, or add --allow_unmatched",
        code="unmatched",
      )
    if unmatched:
      lines.append(f"{path}: {text}")
    if 10 * unmatched > total:
      warnings.append(f"{path}: {text}.")
  return lines, warnings


def _read_answers(path: str) -> record_files.Records[_Answer]:
  def parse(obj: Mapping[str, Any], reader: RecordReader) -> _Answer:
    if not isinstance(obj.get("prompt"), list):
      reader.text(obj, "prompt")
    turns = read_prompt(obj["prompt"], "prompt", reader)
    if "completion" in obj and is_null(obj["completion"]):
      raise Skip(_NO_ANSWER)
    completion = reader.get(obj, "completion")
    prompt = record_files.conversation_text(turns)
    ended = obj.get("ended") is not False
    return _Answer(prompt, completion, reader.origin, ended)

  return record_files.read_records(
    path, parse, ("prompt", "completion", "ended", "skipped")
  )


# Published sets with labels.


def _llmbar(obj: Mapping[str, Any], reader: RecordReader) -> Pair:
  """Reads LLMBar's pair (Zeng et al., arXiv:2310.07641)."""
  turns = instructed(obj, "input", "", reader)
  label = reader.whole(obj, "label")
  if label not in (1, 2):
    reader.fail(f"{label} is no label", "label", "write 1 or 2", "bad_label")
  return _pair(
    record_files.conversation_text(turns), obj, ("output_1", "output_2"),
    (float(label == 1),), reader,
  )  # fmt: skip


def _alpaca_eval(obj: Mapping[str, Any], reader: RecordReader) -> Pair:
  """Reads one annotation of AlpacaEval: 1 or 2 is better, 0 and 1.5 tie.

  A preference between 1 and 2 counts as the nearer one.
  """
  turns = instructed(obj, "instruction", "input", reader)
  if "preference" in obj and is_null(obj["preference"]):
    raise Skip(skips.UNRANKED)
  value = reader.number(obj, "preference")
  if value and not 1 <= value <= 2:
    reader.fail(
      f"{obj['preference']} is no preference", "preference",
      "write 1 or 2 for the better output, 0 or 1.5 for a tie", "bad_label",
    )  # fmt: skip
  label = 0.5 if value in (0, 1.5) else float(value < 1.5)
  names = ("annotator", "annotator_index")
  annotator = next((n for n in names if not is_null(obj.get(n))), "")
  who = reader.identity(obj, annotator) if annotator else ""
  if annotator == "annotator_index":
    who = f"annotator {who}"
  return _pair(
    record_files.conversation_text(turns), obj, ("output_1", "output_2"),
    (label,), reader, (who,) if who else (),
  )  # fmt: skip


def _pandalm(obj: Mapping[str, Any], reader: RecordReader) -> Pair:
  """Reads PandaLM's pair: each annotator says 1, 2, or 0 for a tie."""
  turns = instructed(obj, "instruction", "input", reader)
  fields = sorted(name for name in obj if _VOTE.fullmatch(name))
  labels = []
  for field in fields or ["annotator1"]:
    vote = reader.whole(obj, field)
    if vote not in (0, 1, 2):
      reader.fail(f"{vote} is no label", field, "write 0, 1 or 2", "bad_label")
    labels.append({0: 0.5, 1: 1.0, 2: 0.0}[vote])
  return _pair(
    record_files.conversation_text(turns), obj, ("response1", "response2"),
    tuple(labels), reader, tuple(fields),
  )  # fmt: skip


def _pair(
  prompt: str,
  obj: Mapping[str, Any],
  names: tuple[str, str],
  labels: tuple[float, ...],
  reader: RecordReader,
  annotators: tuple[str, ...] = (),
) -> Pair:
  first, second = (reader.get(obj, name) for name in names)
  if first == second:
    raise Skip(skips.IDENTICAL)
  return Pair(prompt, first, second, labels, reader.origin, annotators)


_GENERATORS = ("generator", "generator_1", "generator_2", "dataset")
_Format = tuple[
  Callable[[Mapping[str, Any], RecordReader], Pair], tuple[str, ...]
]
# Name → how a record is read, and the fields that are read or known.
SETS: Mapping[str, _Format] = {
  "llmbar": (_llmbar, ("input", "output_1", "output_2", "label")),
  "alpaca_eval": (
    _alpaca_eval,
    ("instruction", "input", "output_1", "output_2", "preference", "annotator",
     "annotator_index", "price_per_example", "time_per_example",
     "raw_completion", "datasplit", "index", "time_per_annotation",
     *_GENERATORS),
  ),
  "pandalm": (
    _pandalm,
    ("instruction", "input", "response1", "response2", "annotator1",
     "annotator2", "annotator3", "idx", "cmp_key", "motivation_app"),
  ),
}  # fmt: skip


def read_labeled_pairs(spec: str) -> dict[str, PairFile]:
  """Reads published pairs with labels.

  Args:
    spec: comma list of SET=PATH; sets are the keys of `SETS`, and a path may be
      a directory or a glob.

  Returns:
    "SET PATH" → the pairs of each file, each with all of its labels.

  Raises:
    UserError: `bad_set`, an element is no SET=PATH; a file cannot be read.
  """
  result = {}
  for part in filter(None, spec.split(",")):
    name, _, source = part.partition("=")
    if name not in SETS or not source:
      raise UserError(
        f"{part!r} is not SET=PATH",
        field="--human",
        fix=configs.nearest(name, SETS) or f"sets are {', '.join(SETS)}",
        code="bad_set",
      )
    parse, fields = SETS[name]
    for path in reading.expand(source):
      records = record_files.read_records(path, parse, fields)
      pairs, notes = records.items, record_files.show_left_out(path, records)
      if name == "alpaca_eval":  # A record is one annotation of a pair.
        pairs = _join(pairs)
        if len(pairs) < len(records.items):
          notes.append(
            f"{path}: {len(records.items)} annotations are of"
            f" {len(pairs)} pairs"
          )
      warnings = record_files.find_warnings(path, records)
      result[f"{name} {path}"] = PairFile(pairs, notes, tuple(warnings))
  return result


def _join(pairs: Iterable[Pair]) -> list[Pair]:
  """Joins the annotations of the same two answers, in either order."""
  joined: dict[tuple[str, str, str], Pair] = {}
  for pair in pairs:
    turned = (pair.prompt, pair.second, pair.first)
    is_turned = turned in joined
    key = turned if is_turned else (pair.prompt, pair.first, pair.second)
    known = joined.get(key)
    if known is None:
      joined[key] = pair
      continue
    labels = tuple(1 - v for v in pair.labels) if is_turned else pair.labels
    joined[key] = dataclasses.replace(
      known,
      labels=known.labels + labels,
      annotators=known.annotators + pair.annotators,
    )
  return list(joined.values())


def prompt_numbers(pairs: Sequence[Pair]) -> list[int]:
  """Returns the number of each pair's prompt among the distinct ones."""
  numbers: dict[str, int] = {}
  return [numbers.setdefault(pair.prompt, len(numbers)) for pair in pairs]
