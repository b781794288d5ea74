"""Turns labels into files of records that stages read.

`rankings` train the reward model, `demonstrations` the SFT model, `prompts` are
for PPO, and `evaluation` has the comparisons. Labels of held-out labelers are
in files of their own and nowhere else. A labeler's id is the number of the
user, so that exports have no names. The same store gives the same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import records
from instructgpt_jax.data.curation import personal, splits
from instructgpt_jax.labeling import label_records
from instructgpt_jax.labeling.snapshot import (
  Adjudication,
  Item,
  Label,
  Snapshot,
)

RANKINGS, DEMONSTRATIONS = "rankings", "demonstrations"
PROMPTS, EVALUATION = "prompts", "evaluation"
HELD_OUT = "held_out_"
FILES = (
  RANKINGS,
  DEMONSTRATIONS,
  PROMPTS,
  EVALUATION,
  HELD_OUT + RANKINGS,
  HELD_OUT + DEMONSTRATIONS,
  HELD_OUT + EVALUATION,
)
# Field of a record with what only the labeling application knows.
FIELD = "labeling"
ADJUDICATED = ("replace", "keep")

# Why labels are not in a file.
TIES = "rankings with only ties"
UNABLE = "labels that say why they cannot be judged"
GOLD = "labels of gold items"
SCREENING = "labels of screening items"
CANDIDATE = "labels of candidates"
REPLACED = "labels that a reviewer's final label replaces"
NOT_USED = "final labels, because the labelers' own are kept"
NOTHING_REPLACED = "final labels of items without a label of a training labeler"
PERSONAL = "records with personal information"
BLANKED = "notes with personal information, which are left empty"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
  """What is exported.

  Attributes:
    valid_fraction: share of users, or prompts, whose records are for
      validation.
    test_fraction: share of users, or prompts, whose records are for tests.
    filter_personal: whether records of the train split with personal
      information are left out.
    adjudicated: "replace" exports the final label of an item instead of the
      training labelers' own, "keep" exports their own only. A final label that
      replaces none is left out: held-out labelers alone have labeled its item.
  """

  valid_fraction: float = configs.Data().valid_fraction
  test_fraction: float = configs.Data().test_fraction
  filter_personal: bool = True
  adjudicated: str = "replace"


class Export(NamedTuple):
  """Records of each file, and what is in none.

  Attributes:
    files: name of `FILES` -> records; files without records are absent.
    left_out: reason -> number of labels, records or notes.
    labels: number of labels in the store.
  """

  files: dict[str, list[dict[str, Any]]]
  left_out: dict[str, int]
  labels: int


class _Row(NamedTuple):
  """A record, as stages read it and as it is written."""

  file: str
  record: records.Ranking | records.Demonstration | records.Prompt
  extra: dict[str, Any]  # the field `labeling`


def export_snapshot(
  snapshot: Snapshot, settings: ExportSettings = ExportSettings()
) -> Export:
  """Makes the records of all files from a snapshot.

  Raises:
    ValueError: `settings.adjudicated` is not one of `ADJUDICATED`.
  """
  if settings.adjudicated not in ADJUDICATED:
    raise ValueError(f"adjudicated is {settings.adjudicated!r}")
  left_out: collections.Counter[str] = collections.Counter()
  rows = list(_rows(snapshot, settings, left_out))
  data = configs.Data(
    valid_fraction=settings.valid_fraction,
    test_fraction=settings.test_fraction,
  )
  splitter = splits.Splitter([row.record for row in rows], data)
  files: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    split = splitter.split_of(row.record)
    if settings.filter_personal:
      kind = _personal_kind(row.record) if split == "train" else ""
      if kind:
        left_out[f"{PERSONAL}: {kind}"] += 1
        continue
      _blank_notes(row.extra, left_out)
    files.setdefault(row.file, []).append(_as_json(row, split))
  ordered = {name: files[name] for name in FILES if name in files}
  return Export(ordered, dict(sorted(left_out.items())), len(snapshot.labels))


def _rows(
  snapshot: Snapshot,
  settings: ExportSettings,
  left_out: collections.Counter[str],
) -> Iterator[_Row]:
  """Yields the rows of all files, each file's in the order of items."""
  final = {}
  if settings.adjudicated == "replace":
    final = {a.item.id: a for a in snapshot.adjudications}
  elif snapshot.adjudications:
    left_out[NOT_USED] = len(snapshot.adjudications)
  for label in snapshot.labels:
    reason = _reason_to_leave_out(label, final)
    if reason:
      left_out[reason] += 1
    else:
      yield from _label_rows(label)
  replaced = {
    label.item.id
    for label in snapshot.labels
    if not label.held_out and not label.is_candidate
  }
  for adjudication in final.values():
    label = _final_label(adjudication)
    reason = _reason_to_leave_out(label, {})
    if not reason and label.item.id not in replaced:
      reason = NOTHING_REPLACED
    if reason:
      left_out[reason] += 1
    else:
      yield from _label_rows(label, adjudicated=True)
  yield from _prompt_rows(snapshot)


def _final_label(adjudication: Adjudication) -> Label:
  return Label(
    item=adjudication.item,
    user_id=adjudication.user_id,
    labeler="",
    content=adjudication.content,
    submitted_at=adjudication.at,
  )


def _reason_to_leave_out(
  label: Label, final: Mapping[int, Adjudication]
) -> str:
  item, content = label.item, label.content
  if item.task == "screening":
    return SCREENING
  if label.is_candidate:
    return CANDIDATE
  if item.gold is not None:
    return GOLD
  if item.id in final and not label.held_out:
    return REPLACED
  if content.get("cannot_judge"):
    return UNABLE
  if item.task == "ranking" and len(set(content["ranks"])) < 2:
    return TIES
  return ""


def _label_rows(label: Label, *, adjudicated: bool = False) -> Iterator[_Row]:
  """Yields the rows of one label; few-shot prompts give several."""
  item = label.item
  prefix = HELD_OUT if label.held_out else ""
  extra = _extra(label, adjudicated)
  if item.task == "demonstration":
    for turns, completion in demonstrations_of(item, label.content):
      yield _Row(
        prefix + DEMONSTRATIONS,
        records.Demonstration(
          turns=turns,
          completion=completion,
          labeler_id=str(label.user_id),
          **_origin(item),
        ),
        dict(extra),
      )
    return
  yield _Row(
    prefix + (EVALUATION if item.task == "comparison" else RANKINGS),
    records.Ranking(
      turns=_turns(item),
      completions=tuple(item.payload["completions"]),
      ranks=label_records.ranks_of_content(item.task, label.content),
      labeler_id=str(label.user_id),
      **_origin(item),
    ),
    extra,
  )


def _origin(item: Item) -> dict[str, str]:
  """Returns the user and the split that the project's file gives."""
  origin = item.payload.get("origin") or {}
  return {name: origin.get(name) or "" for name in ("user_id", "split")}


def _turns(item: Item) -> tuple[records.Turn, ...]:
  return tuple(
    records.Turn(turn["role"], turn["content"])
    for turn in item.payload.get("turns") or ()
  )


def demonstrations_of(
  item: Item, content: Mapping[str, Any]
) -> list[tuple[tuple[records.Turn, ...], str]]:
  """Returns the (turns, completion) of a demonstration.

  A few-shot prompt with K examples gives K demonstrations. Each has the other
  K − 1 examples in its prompt, as in appendix A of the paper.
  """
  if content["kind"] == "given":
    return [(_turns(item), content["answer"])]
  if content["kind"] != "few_shot":
    return [((records.Turn("user", content["prompt"]),), content["answer"])]
  examples = content["examples"]
  result = []
  for i, (query, response) in enumerate(examples):
    others = [
      f"Query: {q}\nResponse: {r}"
      for j, (q, r) in enumerate(examples)
      if j != i
    ]
    text = "\n\n".join(
      [content["prompt"], *others, f"Query: {query}\nResponse:"]
    )
    result.append(((records.Turn("user", text),), response))
  return result


def _prompt_rows(snapshot: Snapshot) -> Iterator[_Row]:
  """Yields each distinct prompt of the project and of training labelers.

  Prompts of comparisons are for evaluation, those of gold and screening items
  for measuring labelers. None of them is a prompt for training.
  """
  known: set[tuple[records.Turn, ...]] = set()
  excluded = {
    _turns(item)
    for item in snapshot.items
    if item.task in ("comparison", "screening") or item.gold is not None
  }
  for item in snapshot.items:
    turns = _turns(item)
    if turns and turns not in excluded and turns not in known:
      known.add(turns)
      yield _Row(
        PROMPTS,
        records.Prompt(turns=turns, **_origin(item)),
        {"item": item.id, "kind": item.kind},
      )
  for label in snapshot.labels:
    item = label.item
    if item.task != "demonstration" or item.gold is not None:
      continue
    if label.held_out or label.is_candidate:
      continue
    for turns, _ in demonstrations_of(item, label.content):
      if turns not in known and turns not in excluded:
        known.add(turns)
        yield _Row(
          PROMPTS,
          records.Prompt(turns=turns),
          {"item": item.id, "kind": label.content["kind"]},
        )


def _extra(label: Label, adjudicated: bool) -> dict[str, Any]:
  """Returns the field `labeling` of a record."""
  item, content = label.item, label.content
  result: dict[str, Any] = {
    "item": item.id,
    "kind": item.kind,
    "instructions": label.instructions_version,
    "submitted_at": label.submitted_at,
    "revised_at": label.revised_at,
    "seconds": label.seconds,
    "adjudicated": adjudicated,
  }
  if item.task == "demonstration":
    result["kind"] = content["kind"]
    result["intent"] = content["intent"]
    return result
  result["sources"] = list(item.payload.get("sources") or ())
  result["notes"] = content.get("notes", "")
  if item.task == "comparison":
    result["confidence"] = content["confidence"]
  else:
    result["overall"] = list(content["overall"])
    result["flags"] = [dict(flags) for flags in content["flags"]]
  return result


def _personal_kind(record: Any) -> str:
  texts = [turn.text for turn in record.turns]
  texts += records.replies(record)
  kinds = map(personal.personal_information, texts)
  return next(filter(None, kinds), "")


def _blank_notes(
  extra: dict[str, Any], left_out: collections.Counter[str]
) -> None:
  """Empties what the labeler wrote beside the label, if it names a person."""
  for name in ("notes", "intent"):
    if extra.get(name) and personal.personal_information(extra[name]):
      extra[name] = ""
      left_out[BLANKED] += 1


def _as_json(row: _Row, split: str) -> dict[str, Any]:
  record = row.record
  result: dict[str, Any] = {
    "prompt": [{"role": t.role, "content": t.text} for t in record.turns]
  }
  if isinstance(record, records.Ranking):
    result["completions"] = list(record.completions)
    result["ranks"] = list(record.ranks)
  elif isinstance(record, records.Demonstration):
    result["completion"] = record.completion
  if not isinstance(record, records.Prompt):
    result["labeler_id"] = record.labeler_id
  if record.user_id:
    result["user_id"] = record.user_id
  return {**result, "split": split, FIELD: row.extra}


def summary_lines(export: Export) -> list[str]:
  """Returns a line for each file and for each reason, for people."""
  return [
    *(f"{name}: {len(rows)} records" for name, rows in export.files.items()),
    *(f"left out: {n} {reason}" for reason, n in export.left_out.items()),
  ]
