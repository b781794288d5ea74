"""Reads files of prompts, answers and screening questions as items.

Prompts and answers are read as everywhere in this project (docs/data.md), so
that every format of rankings can be labeled again; ranks that a file has are
not used. Own records have these further fields:

- `sources`: where each completion comes from; no page shows it.
- `kind`: kind of the prompt, for agreement by kind.
- `gold`: the ranks that a labeler is expected to give.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.data import formats, reading
from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.turns import read_prompt
from instructgpt_jax.data.reading import values as values_lib
from instructgpt_jax.data.records import Prompt, Ranking, Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import forms

MAX_COMPLETIONS = 16
MAX_CHARACTERS = 100_000  # of one prompt or completion
_EXTRA = ("sources", "kind", "family", "gold", "ranks", "scores", "labeling")
_ORDER = ("ranks", "scores")
_KINDS = ("kind", "family")
# Keys of a payload without a bearing on what a labeler does.
_HIDDEN = ("sources", "origin")


class NewItem(NamedTuple):
  """An item that a store may not have.

  Attributes:
    task: one of `schema.TASKS`.
    payload: its content; see `schema.items`.
    kind: kind of the prompt; may be empty.
    overlap: number of labelers; None for all.
    gold: content that a labeler is expected to submit, or None.
  """

  task: str
  payload: dict[str, Any]
  kind: str = ""
  overlap: int | None = 1
  gold: dict[str, Any] | None = None

  @property
  def key(self) -> str:
    """A text by which the item is recognised in a store."""
    return key_of(self.task, self.payload)

  def as_row(self, now: float) -> dict[str, Any]:
    """Returns the columns of `schema.items`."""
    return {**self._asdict(), "created_at": now}


def key_of(task: str, payload: Mapping[str, Any]) -> str:
  """Returns a digest of a task and of what a payload shows."""
  shown = {k: v for k, v in payload.items() if k not in _HIDDEN}
  text = json.dumps([task, shown], sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read(task: str, path: str, overlap: int) -> tuple[list[NewItem], list[str]]:
  """Reads the items of one file.

  Args:
    task: one of `schema.TASKS`.
    path: the file.
    overlap: labelers of each item.

  Returns:
    The items, and remarks on what the file has that is not used.

  Raises:
    UserError: the file cannot be read, or a record cannot be used.
  """
  if task == "screening":
    return _read_screening(path), []
  if task == "demonstration":
    use_cases = _read_use_cases(path, overlap)
    return (use_cases, []) if use_cases else _read_prompts(path, overlap)
  return _read_answers(task, path, overlap)


# Prompts with answers.


class Answers(NamedTuple):
  """A prompt with the answers to it.

  Attributes:
    record: the prompt and the answers; its ranks have no meaning.
    line: line of the file.
    value: the JSON value of the line.
  """

  record: Ranking
  line: int
  value: Mapping[str, Any]


def _read_answers(
  task: str, path: str, overlap: int
) -> tuple[list[NewItem], list[str]]:
  notes: collections.Counter[str] = collections.Counter()
  items = [
    _answers_item(task, path, answers, overlap, notes)
    for answers in _scan_answers(path, notes)
  ]
  if not items:
    reasons = ", ".join(f"{n} {note}" for note, n in notes.items())
    raise UserError(
      "holds no prompt with answers" + (f": {reasons}" if reasons else ""),
      file=path,
      fix='give records with "prompt" and "completions"',
      code="no_items",
    )
  return items, [f"{path}: {n} {note}" for note, n in sorted(notes.items())]


def _scan_answers(
  path: str, notes: collections.Counter[str]
) -> Iterator[Answers]:
  """Yields the prompts and answers of a file in any format of rankings."""
  reader = formats.FileReader(path, Ranking)
  values = values_lib.read_values(path, reader.unused)
  if isinstance(values, str):
    raise UserError(
      "is plain text, which holds no answers",
      file=path,
      line=1,
      field="completions",
      fix='give a .jsonl file with "prompt" and "completions"',
      code="plain_text",
    )
  extra: collections.Counter[str] = collections.Counter()
  for line, value in values:
    if isinstance(value, dict):
      extra.update(name for name in _ORDER if value.get(name) is not None)
    _, _, records, reason = reader.read(line, _with_ranks(value))
    if reason == skips.IDENTICAL and _is_own(value):
      raise _equal_answers(path, line, len(value["completions"]))
    if reason:
      notes[reason] += 1
    for record in records:
      if isinstance(record, Ranking):
        known = value if isinstance(value, dict) else {}
        yield Answers(record, line, known)
  for line, _, records, reason in reader.finish():
    if reason:
      notes[reason] += 1
    for record in records:
      if isinstance(record, Ranking):
        yield Answers(record, line, {})
  for name, count in (reader.unused + extra).items():
    if name not in _EXTRA or name in extra:
      notes[f"records whose field {name!r} is not used"] += count


def _with_ranks(value: Any) -> Any:
  """Gives a record of answers the ranks that its format asks for."""
  if not _is_own(value):
    return value
  others = {k: v for k, v in value.items() if k not in _EXTRA}
  return {**others, "ranks": list(range(1, len(value["completions"]) + 1))}


def _is_own(value: Any) -> bool:
  """Returns whether a record has a list of completions, not of objects."""
  completions = value.get("completions") if isinstance(value, dict) else None
  return isinstance(completions, list) and not any(
    isinstance(completion, dict) for completion in completions
  )


def _answers_item(
  task: str,
  path: str,
  answers: Answers,
  overlap: int,
  notes: collections.Counter[str],
) -> NewItem:
  """Makes an item of the distinct answers to a prompt."""
  record, line, value = answers
  sources = _listed(path, line, value, "sources", len(record.completions))
  gold = _listed(path, line, value, "gold", len(record.completions))
  first: dict[str, int] = {}
  for i, completion in enumerate(record.completions):
    first.setdefault(completion, i)
  if len(first) < 2:
    raise _equal_answers(path, line, len(record.completions))
  notes["repeated answers, which are left out"] += len(
    record.completions
  ) - len(first)
  notes += collections.Counter()  # Removes counts of 0.
  chosen = list(first.values())
  _check_count(task, path, line, len(chosen))
  payload: dict[str, Any] = {
    "turns": _messages(path, line, record.turns),
    "completions": [record.completions[i] for i in chosen],
  }
  _check_length(path, line, "completions", payload["completions"])
  if sources:
    payload["sources"] = [_source(path, line, sources[i]) for i in chosen]
  payload.update(_origin(record))
  content = None
  if gold:
    ranks = _gold_ranks(path, line, [gold[i] for i in chosen])
    content = {"ranks": ranks}
  return NewItem(
    task,
    payload,
    _kind(path, line, value),
    None if content else overlap,
    content,
  )


def _equal_answers(path: str, line: int, count: int) -> UserError:
  return UserError(
    f"all {count} answers are equal",
    file=path,
    line=line,
    field="completions",
    fix="give at least two different answers, or delete the record",
    code="equal_answers",
  )


def _check_count(task: str, path: str, line: int, count: int) -> None:
  most = 2 if task == "comparison" else MAX_COMPLETIONS
  if count > most:
    raise UserError(
      f"{count} answers are more than a {task} has",
      file=path,
      line=line,
      field="completions",
      fix=f"give at most {most}, or use another task",
      code="completion_count",
    )


def _check_length(
  path: str, line: int, field: str, texts: Sequence[str]
) -> None:
  for i, text in enumerate(texts):
    if len(text) > MAX_CHARACTERS:
      raise UserError(
        f"has {len(text):,} characters; a page shows at most"
        f" {MAX_CHARACTERS:,}",
        file=path,
        line=line,
        field=f"{field}[{i}]",
        fix="shorten the text, or delete the record",
        code="text_too_long",
      )


def _messages(
  path: str, line: int, turns: Sequence[Turn]
) -> list[dict[str, str]]:
  _check_length(path, line, "prompt", [turn.text for turn in turns])
  return [{"role": turn.role, "content": turn.text} for turn in turns]


def _origin(record: Ranking | Prompt) -> dict[str, Any]:
  origin = {"user_id": record.user_id, "split": record.split}
  origin = {name: value for name, value in origin.items() if value}
  return {"origin": origin} if origin else {}


def _listed(
  path: str, line: int, value: Mapping[str, Any], field: str, count: int
) -> list[Any]:
  """Returns an optional list with one value for each completion."""
  values = value.get(field)
  if values is None:
    return []
  if not isinstance(values, list) or len(values) != count:
    size = len(values) if isinstance(values, list) else "no"
    raise UserError(
      f"{size} {field} for {count} completions",
      file=path,
      line=line,
      field=field,
      fix=f"write a list with one of the {field} for each completion",
      code="value_count",
    )
  return values


def _source(path: str, line: int, value: Any) -> str:
  if not isinstance(value, str):
    raise UserError(
      "a source is no text",
      file=path,
      line=line,
      field="sources",
      fix="write the name of the model that wrote the completion",
      code="wrong_type",
    )
  return value


def _gold_ranks(path: str, line: int, ranks: Sequence[Any]) -> list[int]:
  for rank in ranks:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
      raise UserError(
        f"{rank!r} is no rank",
        file=path,
        line=line,
        field="gold",
        fix="give whole numbers, 1 for best",
        code="bad_rank",
      )
  return forms.dense_ranks(list(ranks))


def _kind(path: str, line: int, value: Mapping[str, Any]) -> str:
  for field in _KINDS:
    kind = value.get(field)
    if kind is None:
      continue
    if not isinstance(kind, str):
      raise UserError(
        "is no text",
        file=path,
        line=line,
        field=field,
        fix="write the kind of the prompt as a word",
        code="wrong_type",
      )
    return kind.strip()
  return ""


# Prompts alone.


def _read_prompts(path: str, overlap: int) -> tuple[list[NewItem], list[str]]:
  """Reads the distinct prompts of a file."""
  records, report = reading.read_prompts(path)
  kinds = _kinds_by_line(path)
  items: dict[str, NewItem] = {}
  for record in records:
    line = int(record.origin.rpartition(":")[2])
    item = NewItem(
      "demonstration",
      {"turns": _messages(path, line, record.turns), **_origin(record)},
      kinds.get(line, ""),
      overlap,
    )
    items.setdefault(item.key, item)
  notes = [f"{path}: {n} {why}" for why, n in sorted(report.skipped.items())]
  if len(items) < len(records):
    repeated = len(records) - len(items)
    notes.append(f"{path}: {repeated} repeated prompts, which are left out")
  return list(items.values()), notes


def _read_use_cases(path: str, overlap: int) -> list[NewItem]:
  """Reads use cases, for which labelers write prompts; [] for prompts."""
  values = values_lib.read_values(path, collections.Counter())
  if isinstance(values, str):
    return []
  items = []
  for line, value in values:
    if not items and not (isinstance(value, dict) and "use_case" in value):
      return []
    reader = RecordReader(path, line, strict=True)
    if not isinstance(value, dict):
      reader.fail("is not an object", "", 'write {"use_case": …}', "wrong_type")
    text = reader.text(value, "use_case").strip()
    _check_length(path, line, "use_case", [text])
    for name in value.keys() - {"use_case", *_KINDS}:
      reader.fail(
        "there is no such field beside a use case",
        name,
        "give use cases and prompts in different files",
        "unknown_field",
      )
    kind = _kind(path, line, value)
    items.append(NewItem("demonstration", {"use_case": text}, kind, overlap))
  return items


def _kinds_by_line(path: str) -> dict[int, str]:
  values = values_lib.read_values(path, collections.Counter())
  if isinstance(values, str):
    return {}
  return {
    line: _kind(path, line, value)
    for line, value in values
    if isinstance(value, dict)
  }


# Screening.


def _read_screening(path: str) -> list[NewItem]:
  """Reads screening items; each candidate gets all of them."""
  values = values_lib.read_values(path, collections.Counter())
  if isinstance(values, str):
    raise UserError(
      "is plain text, which holds no screening items",
      file=path,
      line=1,
      fix="give a .jsonl file; docs/labeling.md has one example each",
      code="plain_text",
    )
  items = [_screening_item(path, line, value) for line, value in values]
  if not items:
    raise UserError(
      "holds no screening items",
      file=path,
      fix="write an item in each line; docs/labeling.md has one example each",
      code="no_items",
    )
  return items


_SCREENING_FIELDS = {
  "sensitive": ("kind", "prompt", "texts", "gold"),
  "ranking": ("kind", "prompt", "completions", "gold"),
  "demonstration": ("kind", "prompt"),
  "groups": ("kind", "groups"),
}


def _screening_item(path: str, line: int, value: Any) -> NewItem:
  kind = value.get("kind") if isinstance(value, dict) else None
  if kind not in forms.SCREENING_KINDS:
    raise UserError(
      f"{json.dumps(kind)[:50]} is no kind of screening item",
      file=path,
      line=line,
      field="kind",
      fix="use one of " + ", ".join(forms.SCREENING_KINDS),
      code="screening_kind",
    )
  reader = RecordReader(path, line, strict=True)
  for name in value:
    if name not in _SCREENING_FIELDS[kind]:
      reader.fail(
        "there is no such field",
        name,
        "use " + ", ".join(_SCREENING_FIELDS[kind]),
        "unknown_field",
      )
  payload: dict[str, Any] = {"kind": kind}
  if value.get("prompt") is not None:
    turns = read_prompt(value["prompt"], "prompt", reader)
    payload["turns"] = _messages(path, line, turns)
  gold = None
  if kind == "sensitive":
    payload["texts"] = _texts(reader, value, "texts", 1)
    flags = _listed(path, line, value, "gold", len(payload["texts"]))
    if not all(isinstance(flag, bool) for flag in flags):
      reader.fail("is no list of true and false", "gold", code="wrong_type")
    gold = {"sensitive": flags} if flags else None
  elif kind == "ranking":
    if "turns" not in payload:
      reader.fail("the field 'prompt' is missing", "prompt",
                  code="missing_field")  # fmt: skip
    payload["completions"] = _texts(reader, value, "completions", 2)
    _check_count(kind, path, line, len(payload["completions"]))
    ranks = _listed(path, line, value, "gold", len(payload["completions"]))
    gold = {"ranks": _gold_ranks(path, line, ranks)} if ranks else None
  elif kind == "groups" and value.get("groups") is not None:
    payload["groups"] = _texts(reader, value, "groups", 1)
  return NewItem("screening", payload, kind, None, gold)


def _texts(
  reader: RecordReader, value: Mapping[str, Any], name: str, least: int
) -> list[str]:
  """Returns a required list of different texts."""
  texts = reader.get(value, name, list)
  if len(texts) < least or not all(
    isinstance(text, str) and text.strip() for text in texts
  ):
    reader.fail(
      f"is no list of {least} or more texts",
      name,
      "write the texts, none of them empty",
      "wrong_type",
    )
  if len(set(texts)) < len(texts):
    reader.fail("has a text twice", name, "delete one", "equal_answers")
  _check_length(reader.file, reader.line, name, texts)
  return texts
