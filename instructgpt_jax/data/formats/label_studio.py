"""Label Studio's exports of pairwise and ranking projects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.common import IRRELEVANT
from instructgpt_jax.data.formats.format import Format, choose, first_of
from instructgpt_jax.data.formats.json_values import is_null, is_set, type_name
from instructgpt_jax.data.formats.pairs import pair
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.scored import ranking
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.turns import Turns, read_prompt
from instructgpt_jax.data.records import Record

_PROMPTS = ("prompt", "question", "instruction", "text", "input")
_PAIRS = (
  ("answer1", "answer2"),
  ("answer_1", "answer_2"),
  ("response1", "response2"),
  ("response_1", "response_2"),
  ("text1", "text2"),
  ("left", "right"),
)
_PAIR_NAMES = tuple(name for names in _PAIRS for name in names)
_LISTS = ("items", "answers", "responses", "results", "list")
_TEXTS = ("body", "text", "html", "title")
# Usual names of the control whose field holds the verdict.
_VERDICTS = ("prefer", "preference", "choice", "pairwise", "comparison",
             "selected", "verdict", "winner", "better")  # fmt: skip
_RANKS = ("rank", "ranks", "ranking", "ranker", "order")
# Fields that never hold the verdict.
_NO_VERDICTS = ("annotator", "annotation_id", "lead_time", "system", "context",
                "history", "split", "user_id", "labeler_id", "tools",
                *IRRELEVANT)  # fmt: skip
_SIDES = {"left": 1, "right": 2}
_BUCKETS = "rankings in several named buckets"
_CANCELLED = "cancelled annotations"


def _pair_fields(obj: Mapping[str, Any]) -> tuple[str, str] | None:
  return next((p for p in _PAIRS if p[0] in obj and p[1] in obj), None)


def _prompt(
  data: Mapping[str, Any], reader: RecordReader, where: str = ""
) -> Turns:
  name = choose(data, _PROMPTS, reader) or "prompt"
  if not isinstance(data.get(name), list):
    reader.get(data, name, where=where)
  return read_prompt(data[name], where + name, reader)


def _check_object(value: Any, where: str, reader: RecordReader) -> None:
  if not isinstance(value, dict):
    reader.fail(
      f"an object is expected, not {type_name(value)}",
      where,
      "export the project again",
      "wrong_type",
    )


def _labeler(annotation: Mapping[str, Any], reader: RecordReader) -> str:
  person = annotation.get("completed_by")
  if isinstance(person, dict):
    return reader.identity(person, "id" if "id" in person else "email")
  return reader.identity(annotation, "completed_by")


def _export(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields a ranking for each annotation of a task."""
  data = reader.get(obj, "data", dict)
  known = {*_PROMPTS, *_LISTS, *(_pair_fields(data) or ()), "id"}
  reader.note_others(data, known, "data")
  turns = _prompt(data, reader, "data.")
  reasons: list[str] = []
  count = 0
  for i, annotation in enumerate(reader.get(obj, "annotations", list)):
    where = f"annotations[{i}]."
    _check_object(annotation, f"annotations[{i}]", reader)
    if is_set(annotation.get("was_cancelled")):
      reasons.append(_CANCELLED)
      continue
    labeler = _labeler(annotation, reader)
    for result in reader.get(annotation, "result", list, where=where):
      _check_object(result, where + "result", reader)
      try:
        for record in _result(data, turns, result, labeler, reader):
          count += 1
          yield record
      except Skip as skip:
        reasons.append(str(skip))
  if not count:
    raise Skip(reasons[0] if reasons else skips.UNRANKED)
  reader.notes.update(f"annotations left out: {reason}" for reason in reasons)


def _result(
  data: Mapping[str, Any], turns: Turns, result: Mapping[str, Any],
  labeler: str, reader: RecordReader,
) -> Iterator[Record]:  # fmt: skip
  value = result.get("value")
  if not isinstance(value, dict):
    raise Skip(skips.UNRANKED)
  if result.get("type") == "pairwise":
    yield from _pairwise(data, turns, result, labeler, reader)
  elif "ranker" in value:
    yield from _ranked(data, turns, value["ranker"], labeler, reader, "data.")
  else:
    reader.unused.add(f"annotations[].result of type {result.get('type')!r}")


def _pairwise(
  data: Mapping[str, Any], turns: Turns, result: Mapping[str, Any],
  labeler: str, reader: RecordReader,
) -> Iterator[Record]:  # fmt: skip
  # The left side is the first tag that the control names.
  tags = str(result.get("to_name") or "").split(",")
  names = _pair_fields(data)
  if names is not None and tags == [names[1], names[0]]:
    names = names[1], names[0]
  if names is None:
    reader.fail(
      "two answers are expected",
      "data",
      "name them 'answer1' and 'answer2'",
      "missing_field",
    )
  selected = result["value"].get("selected")
  if is_null(selected):
    raise Skip(skips.UNRANKED)
  texts = tuple(reader.get(data, name, where="data.") for name in names)
  better = _SIDES.get(selected, 0) if isinstance(selected, str) else 0
  yield from pair(turns, (texts[0], texts[1]), better, reader, labeler)


def _ranked(
  data: Mapping[str, Any],
  turns: Turns,
  order: Any,
  labeler: str,
  reader: RecordReader,
  where: str = "",
) -> Iterator[Record]:
  """Yields the ranking of a list of ids, the best one first."""
  if isinstance(order, dict):
    named = {k: v for k, v in order.items() if k != "_"}
    if len(named) > 1 or not order:
      raise Skip(_BUCKETS)
    order = next(iter(named.values())) if named else order["_"]
  field = choose(data, _LISTS, reader) or "items"
  items = reader.get(data, field, list, where=where)
  texts = {}
  for i, item in enumerate(items):
    _check_object(item, f"{where}{field}[{i}]", reader)
    name = first_of(item, _TEXTS) or "text"
    text = reader.get(item, name, where=f"{where}{field}[{i}].")
    texts[str(item.get("id"))] = text
  if not isinstance(order, list) or any(str(i) not in texts for i in order):
    reader.fail(
      "the ranking names items that are not there",
      "annotations",
      "export the project again",
      "unknown_item",
    )
  if len(order) < len(items):
    reader.notes.add("rankings of a part of their items")
  yield from ranking(
    turns,
    [texts[str(i)] for i in order],
    [-float(i) for i in range(len(order))],
    reader,
    labeler,
  )


def _one_field(
  fields: list[str], named: tuple[str, ...], reader: RecordReader
) -> str:
  """Returns the field that holds the verdict, or "" where there is none.

  A field of a usual name comes first.

  Raises:
    UserError: where several fields may be the verdict.
  """
  usual = [name for name in fields if name in named]
  if len(usual or fields) > 1:
    reader.fail(
      f"several fields may hold the verdict: {', '.join(usual or fields)}",
      (usual or fields)[1],
      f"delete all but one of them, or name that one {named[0]!r}",
      "ambiguous_verdict",
    )
  return (usual or fields or [""])[0]


def _choice_field(obj: Mapping[str, Any], reader: RecordReader) -> str:
  """Returns the field that says left or right, or ""."""
  if "prefer" in obj:
    return "prefer" if _side_of(obj["prefer"]) else ""
  others = {*_PROMPTS, *_PAIR_NAMES, *_LISTS, *_NO_VERDICTS}
  fields = [k for k, v in obj.items() if k not in others and _side_of(v)]
  return _one_field(fields, _VERDICTS, reader)


def _side_of(value: Any) -> int:
  """Returns 1 for left, 2 for right and 0 for anything else."""
  return _SIDES.get(value.strip().lower(), 0) if isinstance(value, str) else 0


def _minimal(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the pair of a JSON-MIN record; the verdict is left or right."""
  names = _pair_fields(obj) or ("answer1", "answer2")
  reader.note_others(
    {f: obj[f] for f in _PAIR_NAMES if f in obj}, names, "other answers"
  )
  turns = _prompt(obj, reader)
  choice = _choice_field(obj, reader)
  reader.unused.discard(choice)
  if not choice:
    raise Skip(skips.UNRANKED)
  texts = reader.get(obj, names[0]), reader.get(obj, names[1])
  labeler = reader.identity(obj, "annotator")
  yield from pair(turns, texts, _side_of(obj[choice]), reader, labeler)


def _order(value: Any) -> Any:
  """Returns the order that a ranker's value holds, or None."""
  if isinstance(value, dict) and "ranker" in value:
    value = value["ranker"]
  lists = value.values() if isinstance(value, dict) else [value]
  if lists and all(
    isinstance(ids, list)
    and all(isinstance(i, str | int) and not isinstance(i, bool) for i in ids)
    for ids in lists
  ):
    return value
  return None


def _order_field(
  obj: Mapping[str, Any], items: list[Any], reader: RecordReader
) -> str:
  """Returns the field that orders the items of a record, or ""."""
  known = {str(item.get("id")) for item in items if isinstance(item, dict)}
  fields = []
  for name, value in obj.items():
    if name in (*_LISTS, *_PROMPTS, *_NO_VERDICTS):
      continue
    order = _order(value)
    lists = order.values() if isinstance(order, dict) else [order or []]
    ids = [str(i) for items in lists for i in items]
    if ids and known.issuperset(ids):
      fields.append(name)
  return _one_field(fields, _RANKS, reader)


def _minimal_ranking(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the ranking of a JSON-MIN record, the best item first."""
  turns = _prompt(obj, reader)
  field = choose(obj, _LISTS, reader) or "items"
  name = _order_field(obj, reader.get(obj, field, list), reader)
  reader.unused.discard(name)
  if not name:
    raise Skip(skips.UNRANKED)
  labeler = reader.identity(obj, "annotator")
  yield from _ranked(obj, turns, _order(obj[name]), labeler, reader)


def _is_minimal_ranking(obj: Any) -> bool:
  if not isinstance(obj, dict) or not first_of(obj, _PROMPTS):
    return False
  items = obj.get(first_of(obj, _LISTS))
  return (
    ("annotator" in obj or "annotation_id" in obj)
    and isinstance(items, list)
    and bool(items)
    and all(isinstance(i, dict) and "id" in i for i in items)
  )


def _is_export(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and isinstance(obj.get("data"), dict)
    and isinstance(obj.get("annotations"), list)
  )


def _is_minimal(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and _pair_fields(obj) is not None
    and bool(first_of(obj, _PROMPTS))
    and ("annotator" in obj or "annotation_id" in obj or "prefer" in obj)
  )


EXPORT = Format(
  "Label Studio",
  _is_export,
  _export,
  {
    "data": "the prompt, and two answers or a list of items with ids",
    "annotations": "a ranking each: the selected side of a pairwise result, or"
    " the order of a ranker; completed_by is the labeler id; cancelled ones"
    " are counted, rankings in several buckets as well",
  },
  ("data", "annotations"),
  ("drafts", "predictions", "meta", "inner_id", "total_annotations",
   "cancelled_annotations", "total_predictions", "comment_count",
   "unresolved_comment_count", "last_comment_updated_at", "project",
   "updated_by", "comment_authors", "file_upload"),
  result="rankings, one for each annotation",
)  # fmt: skip
MINIMAL = Format(
  "Label Studio, JSON-MIN",
  _is_minimal,
  _minimal,
  {
    **dict.fromkeys(_PROMPTS, "the prompt"),
    **dict.fromkeys(_PAIR_NAMES, "a reply"),
    "prefer": "left or right; the field may have another name",
    "annotator": "labeler id",
  },
  ("prompt", "answer1", "answer2", "prefer"),
  ("annotation_id", "lead_time"),
  result="rankings, K = 2",
)
MINIMAL_RANKING = Format(
  "Label Studio rankings, JSON-MIN",
  _is_minimal_ranking,
  _minimal_ranking,
  {
    **dict.fromkeys(_PROMPTS, "the prompt"),
    **dict.fromkeys(_LISTS, "the replies, with ids"),
    "rank": "the ids, best first; the field may have another name",
    "annotator": "labeler id",
  },
  ("prompt", "items", "rank"),
  ("annotation_id", "lead_time"),
  result="rankings",
)
