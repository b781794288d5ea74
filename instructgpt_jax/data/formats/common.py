"""Fields that mean the same in every format, read in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats import turns as turns_lib
from instructgpt_jax.data.formats.json_values import (
  is_blank,
  is_null,
  type_name,
)
from instructgpt_jax.data.formats.labels import is_zero, reason_to_exclude
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import add_input, is_placeholder
from instructgpt_jax.data.records import (
  SPLITS,
  Demonstration,
  Document,
  Prompt,
  Record,
  Turn,
)

_SYSTEM = ("system", "system_prompt", "system_message")
_WEIGHTS = ("weight", "train", "trainable")
_LABELS = ("label", "kto_tag")
_TOOLS = ("tools", "functions", "function_call", "tool_calls")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_SKIPPED = "the record is skipped and counted, unless the field is empty"
FIELDS = {
  **dict.fromkeys(_SYSTEM, "system turn ahead of the conversation"),
  "history": "turns ahead of the prompt: [user, assistant] pairs or messages",
  "context": "input below the last user turn, unless it stands there already:"
  " on lines of its own, or 40 characters or more; a reply to an earlier turn"
  " is skipped and counted",
  "user_id": "user id",
  "labeler_id": "labeler id; prompts have none",
  "split": "split, where it names one; otherwise unused and counted",
  **dict.fromkeys(
    _WEIGHTS, "0, below 0 or false skips and counts the record; others are not"
    " used"
  ),
  **dict.fromkeys(
    _LABELS,
    "a label that is not known to be good (true, 1, \"good\", \"yes\")"
    " makes a demonstration a prompt, and is counted",
  ),
  **dict.fromkeys(_TOOLS, _SKIPPED),
  **dict.fromkeys(_MEDIA, _SKIPPED),
}  # fmt: skip
# Names and origins of records, which have no bearing on what they say.
IRRELEVANT = (
  "id", "_id", "idx", "index", "uuid", "guid", "prompt_id", "conversation_id",
  "source", "dataset", "url", "lang", "language", "timestamp", "created_at",
  "updated_at", "parallel_tool_calls", "Unnamed: 0", "__index_level_0__",
)  # fmt: skip
_SPLIT_NAMES = {"": "", "validation": "valid", "val": "valid", "dev": "valid",
                "eval": "valid", "training": "train", "testing": "test",
                "valid1": "valid", "valid2": "valid"}  # fmt: skip
_SPLIT_NAMES.update({name: name for name in SPLITS})
_HELD_OUT = re.compile(r"(?:held|hold)[ _-]?out\b")
# test_sft, test2, dev-clean and test[:10%], but not train/test or test+valid.
_SPLIT_WORD = re.compile(r"([a-z]+)(?:[_-][\w.-]*|\d+|\[[^\]]*\])?\Z")
_END_OF_LINE = re.compile(r"[ \t\r]*\n[ \t]*")
# Characters of a text that no other text holds by chance.
_LONG = 40
# Blank values that some writers put into a text.
_EMPTY_JSON = ("[]", "{}", "null", "none", "false")


@dataclasses.dataclass(slots=True)
class Common:
  """Values of the common fields of a record."""

  system: str = ""
  history: turns_lib.Turns = ()
  context: str = ""
  user_id: str = ""
  labeler_id: str = ""
  split: str = ""
  excluded: str = ""
  label: str = ""


def split_name(value: str) -> str | None:
  """Returns the split that a name such as "validation" or "test_sft" means."""
  name = value.strip().lower()
  if name in _SPLIT_NAMES:
    return _SPLIT_NAMES[name]
  if _HELD_OUT.match(name):
    return "test"
  word = _SPLIT_WORD.match(name)
  return _SPLIT_NAMES.get(word.group(1)) if word else None


def read(
  obj: Mapping[str, Any],
  names: Iterable[str],
  reader: RecordReader,
  strict: bool,
) -> Common:
  """Reads the common fields `names` of a record.

  Args:
    obj: the record.
    names: fields of FIELDS that it has.
    reader: its position.
    strict: whether an unknown split is an error.

  Raises:
    Skip: where a field excludes the record.
  """
  common = Common()
  for name in names:
    value = obj[name]
    if is_null(value):
      continue
    if name in _SYSTEM:
      system = reader.optional(obj, name)
      if not is_placeholder(system):
        if common.system not in ("", system):
          raise Skip(skips.CONTRADICTION)
        common.system = system
    elif name == "history":
      common.history = read_history(value, reader)
    elif name == "context":
      _read_context(value, common, reader)
    elif name in ("user_id", "labeler_id"):
      setattr(common, name, reader.identity(obj, name))
    elif name == "split":
      common.split = _read_split(value, reader, strict)
    elif name in _WEIGHTS:
      _read_weight(name, value, reader)
    elif name in _LABELS:
      reason = reason_to_exclude(value)
      common.excluded = common.excluded or reason
      if reason == skips.UNKNOWN_LABEL:
        reader.unused.add(name)
      elif not is_blank(value):
        common.label = name
    elif not _is_empty(value):
      raise Skip(skips.TOOLS if name in _TOOLS else skips.NOT_TEXT)
  return common


def _is_empty(value: Any) -> bool:
  if isinstance(value, str):
    return not value.strip() or value.strip().lower() in _EMPTY_JSON
  return is_blank(value) or value is False


def _read_context(value: Any, common: Common, reader: RecordReader) -> None:
  if isinstance(value, str):
    common.context = "" if is_placeholder(value) else value
  elif isinstance(value, list) and all(isinstance(v, str) for v in value):
    common.context = "\n\n".join(v for v in value if not is_placeholder(v))
  elif not is_blank(value):
    reader.unused.add("context")


def read_history(value: Any, reader: RecordReader) -> turns_lib.Turns:
  """Reads turns ahead of the prompt: pairs of texts, or messages."""
  if _is_empty(value):
    return ()
  if not isinstance(value, list):
    reader.fail(
      f"a list is expected, not {type_name(value)}",
      "history",
      'write it as [["question", "answer"], ...]',
      "wrong_type",
    )
  if isinstance(value[0], dict):
    return turns_lib.read_turns(value, "history", reader)
  history: list[Turn] = []
  for i, pair in enumerate(value):
    if (
      not isinstance(pair, list)
      or len(pair) != 2
      or not all(isinstance(text, str) for text in pair)
    ):
      reader.fail(
        "a pair of texts is expected",
        f"history[{i}]",
        'write it as [["question", "answer"], ...]',
        "wrong_type",
      )
    history += [Turn("user", pair[0]), Turn("assistant", pair[1])]
  turns_lib.check_texts(history, "history", reader)
  return tuple(history)


def _read_split(value: Any, reader: RecordReader, strict: bool) -> str:
  split = split_name(value) if isinstance(value, str) else None
  if split is not None:
    return split
  if strict:
    reader.fail(
      f"{value!r} is no split",
      "split",
      "give one of " + ", ".join(map(repr, SPLITS)),
      "unknown_split",
    )
  reader.unused.add("split")
  return ""


def _read_weight(name: str, value: Any, reader: RecordReader) -> None:
  if is_zero(value) and value != "":
    raise Skip(skips.WEIGHT_0)
  if value not in (1, "1", "true", "True", ""):
    reader.unused.add(f"{name} (other than 0 and 1)")


def holds_block(text: str, part: str) -> bool:
  """Returns whether a text contains another one as a block.

  A block is on lines of its own, or long.
  """
  part = part.strip()
  if len(part) >= _LONG:
    return part in text
  return f"\n{part}\n" in "\n" + _END_OF_LINE.sub("\n", text) + "\n"


def apply(record: Record, common: Common, context_turns: int = 0) -> Record:
  """Returns a record with what its common fields say.

  A demonstration whose label is bad or unknown becomes its prompt.

  Args:
    record: the record.
    common: its common fields.
    context_turns: length of the conversation up to the question of the context;
      0 for the last turn of any record.

  Raises:
    Skip: where a field contradicts the conversation, or where the context
      belongs to a later question.
  """
  if isinstance(record, Document):
    return dataclasses.replace(record, split=common.split or record.split)
  changes: dict[str, Any] = {}
  turns = record.turns
  if common.context:
    if context_turns > len(turns):
      raise Skip(skips.LATER_CONTEXT)
    if not holds_block(turns[-1].text, common.context):
      turns = add_input(turns, common.context)
  if common.history:
    turns = _add_history(turns, common.history)
  if common.system:
    turns = turns_lib.add_system(turns, common.system)
  if turns is not record.turns:
    changes["turns"] = turns
  if common.user_id:
    changes["user_id"] = common.user_id
  if common.split:
    changes["split"] = common.split
  if common.labeler_id and not isinstance(record, Prompt):
    changes["labeler_id"] = common.labeler_id
  if isinstance(record, Demonstration) and common.excluded:
    return Prompt(
      turns=turns,
      origin=record.origin,
      user_id=common.user_id or record.user_id,
      split=common.split or record.split,
    )
  # Faster than dataclasses.replace, once a record.
  return type(record)(**(vars(record) | changes)) if changes else record


def _add_history(
  turns: turns_lib.Turns, history: turns_lib.Turns
) -> turns_lib.Turns:
  system, body = turns_lib.split_system(turns)
  if body[: len(history)] == history:
    return turns
  before, history = turns_lib.split_system(history)
  if before and system and before.strip() != system.strip():
    raise Skip(skips.CONTRADICTION)
  return turns_lib.add_system(history + body, system or before)
