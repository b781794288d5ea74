"""Conversations: messages and prompts as turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.data.formats import skips, transcripts
from instructgpt_jax.data.formats.json_values import (
  is_blank,
  is_null,
  is_set,
  type_name,
)
from instructgpt_jax.data.formats.labels import is_zero, reason_to_exclude
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.records import Turn

Turns = tuple[Turn, ...]
ROLES = {
  "user": "user",
  "human": "user",
  "prompter": "user",
  "assistant": "assistant",
  "gpt": "assistant",
  "chatgpt": "assistant",
  "bot": "assistant",
  "chatbot": "assistant",
  "ai": "assistant",
  "model": "assistant",
  "system": "system",
  "developer": "system",
}
_TOOL_ROLES = {
  "tool",
  "tools",
  "tool_call",
  "tool_calls",
  "tool_response",
  "function",
  "function_call",
  "function_response",
  "observation",
  "ipython",
}
# What a message may hold: its turn, whether it is trained on, and calls.
_MESSAGE_FIELDS = frozenset(
  ("role", "content", "from", "value", "weight", "train", "trainable", "loss")
  + ("label", "tool_calls", "function_call", "tool_call_id")
)
# Capybara's conversations.
_EXCHANGE = frozenset(("input", "output"))
_SPEAKERS = ("role", "from")
_CONTENTS = ("content", "value")
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_WEIGHTS = ("weight", "train", "trainable", "loss")
_TEXT_PARTS = ("text", "input_text", "output_text")
_TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "function_call")

_ENCODED = re.compile(
  r"\s*\[\s*\{\s*[\"'](?:role|from|content|value)[\"']\s*:\s*[\"']"
)


class Message(NamedTuple):
  """One message.

  Attributes:
    turn: its role and text.
    excluded: why a model may not be trained on it, or "".
  """

  turn: Turn
  excluded: str = ""


def user(text: str) -> Turns:
  """Returns a conversation of one user turn."""
  return (Turn("user", text),)


def read_prompt(value: Any, field: str, reader: RecordReader) -> Turns:
  """Reads a prompt: a text, a transcript, or messages up to a user's turn."""
  if isinstance(value, list):
    turns = read_turns(value, field, reader)
  else:
    text = reader.text({field: value}, field)
    refuse_encoded(text, field, reader)
    turns = transcripts.of_prompt(text)
    if not turns:
      return user(text)
    check_texts(turns, field, reader)
  if turns[-1].role != "user":
    reader.refuse(
      skips.ENDS_WITH_REPLY if turns[-1].role == "assistant" else skips.NO_USER,
      "ends with a reply"
      if turns[-1].role == "assistant"
      else "does not end with a user's turn",
      field,
      "end the prompt with a user's turn",
      "prompt_end",
    )
  return turns


def refuse_encoded(text: str, field: str, reader: RecordReader) -> None:
  """Refuses a text that is a whole list of messages, as CSV files hold it."""
  if _ENCODED.match(text) and text.rstrip().endswith("]"):
    reader.fail(
      "is a list of messages that is written as one text",
      field,
      "write the list itself, not a text of it (in Python json.loads, or"
      " ast.literal_eval where it has single quotes)",
      "encoded_messages",
    )


def check_texts(
  turns: Sequence[Turn], field: str, reader: RecordReader
) -> None:
  """Refuses a conversation with an empty turn ahead of the last reply."""
  for i, turn in enumerate(turns):
    if not turn.text.strip():
      reader.refuse(
        skips.EMPTY_TURNS,
        f"the {turn.role}'s turn is empty",
        f"{field}[{i}]",
        "give it a text or delete the turn",
        "empty_turn",
      )


def read_turns(value: Any, field: str, reader: RecordReader) -> Turns:
  """Reads a list of messages that all have a text."""
  turns = tuple(m.turn for m in read_messages(value, field, reader))
  check_texts(turns, field, reader)
  return turns


def read_replied(value: Any, field: str, reader: RecordReader) -> Turns:
  """Reads a conversation whose last reply is learned or ranked.

  Raises:
    Skip: where the last message is excluded, as by a weight of 0.
  """
  messages = read_messages(value, field, reader)
  if messages[-1].excluded and messages[-1].turn.role == "assistant":
    raise Skip(messages[-1].excluded)
  return tuple(m.turn for m in messages)


def read_messages(
  value: Any, field: str, reader: RecordReader
) -> list[Message]:
  """Reads OpenAI's {"role", "content"} or ShareGPT's {"from", "value"} list.

  Capybara's {"input", "output"} is a user's turn and its reply.

  A system message without a text is left out.

  Raises:
    Skip: for tool calls, parts that are not text, and lists without messages.
  """
  if not isinstance(value, list) or not value:
    if not value and not reader.strict and not isinstance(value, str):
      raise Skip(skips.NO_TURNS)
    reader.fail(
      f"a list of turns is expected, not {type_name(value)}",
      field,
      'write it as [{"role": "user", "content": "..."}, ...]',
      "wrong_type",
    )
  messages = []
  for i, message in enumerate(value):
    where = f"{field}[{i}]"
    if not isinstance(message, dict):
      reader.fail(
        f"an object is expected, not {type_name(message)}",
        where,
        'write each turn as {"role": "user", "content": "..."}',
        "wrong_type",
      )
    if _EXCHANGE <= message.keys() and all(
      is_null(message.get(name)) for name in _SPEAKERS
    ):
      messages += _read_exchange(message, where, reader)
      continue
    message = read_message(message, where, reader)
    if message.turn.role != "system" or message.turn.text.strip():
      messages.append(message)
  if not messages:
    raise Skip(skips.NO_TURNS)
  return messages


def _read_exchange(
  exchange: Mapping[str, Any], where: str, reader: RecordReader
) -> list[Message]:
  """Reads a question and its answer that stand in one object."""
  reader.note_others(exchange, _EXCHANGE, f"{where.split('[')[0]}[]")
  return [
    Message(Turn(role, reader.get(exchange, name, where=where + ".")))
    for role, name in (("user", "input"), ("assistant", "output"))
  ]


def read_message(
  message: Mapping[str, Any], where: str, reader: RecordReader
) -> Message:
  """Reads one message; `where` names it in errors."""
  who, what = _message_fields(message, where, reader)
  role = reader.get(message, who, where=where + ".").lower()
  if role in _TOOL_ROLES or any(is_set(message.get(f)) for f in _CALLS):
    raise Skip(skips.TOOLS)
  if role not in ROLES:
    reader.fail(
      f"{role!r} is no known role",
      f"{where}.{who}",
      "use 'system', 'user' or 'assistant'",
      "unknown_role",
    )
  content = _content(message, what, where, reader)
  excluded = ""
  if len(message) > 2:
    excluded = _reason_to_exclude(message, reader)
    name = where.split("[")[0]
    reader.note_others(message, _MESSAGE_FIELDS, f"{name}[]")
  turn = Turn(ROLES[role], content, learnable=not excluded)
  return Message(turn, excluded)


def _message_fields(
  message: Mapping[str, Any], where: str, reader: RecordReader
) -> tuple[str, str]:
  """Returns the names of a message's role and of its content.

  Null counts as absent. Two roles or two contents have to agree.
  """
  speakers = [f for f in _SPEAKERS if not is_null(message.get(f))]
  contents = [f for f in _CONTENTS if not is_null(message.get(f))]
  if len(speakers) == 2:
    first, second = (
      reader.get(message, name, where=where + ".").lower() for name in speakers
    )
    if ROLES.get(first, first) != ROLES.get(second, second):
      _contradict(where, reader)
  if len(contents) == 2 and message["content"] != message["value"]:
    _contradict(where, reader)
  if speakers:
    who = speakers[0]
  else:
    who = "from" if "from" in message and "role" not in message else "role"
  what, other = _CONTENTS if who == "role" else _CONTENTS[::-1]
  if contents == [other]:
    if len(speakers) == 2:
      return who, other
    reader.fail(
      f"the field {what!r} is missing beside {who!r}",
      f"{where}.{what}",
      f"rename {other!r} to {what!r}, or {who!r} to"
      f" {'role' if who == 'from' else 'from'!r}",
      "missing_field",
    )
  return who, what


def _contradict(where: str, reader: RecordReader) -> None:
  reader.refuse(
    skips.CONTRADICTION,
    "has two roles or two texts that differ",
    where,
    "delete the fields of one of the two",
    "contradiction",
  )


def _content(
  message: Mapping[str, Any], what: str, where: str, reader: RecordReader
) -> str:
  """Returns the text of a message; null is an empty text."""
  content = message.get(what)
  if isinstance(content, list):
    return _join(content, f"{where}.{what}", reader)
  if isinstance(content, str):
    return content
  if what in message and is_null(content):
    return ""
  return reader.get(message, what, where=where + ".")


def _join(parts: list[Any], where: str, reader: RecordReader) -> str:
  """Joins the texts of content parts; null parts are left out."""
  texts = []
  for i, part in enumerate(parts):
    if is_null(part):
      continue
    if isinstance(part, str):
      texts.append(part)
      continue
    if not isinstance(part, dict):
      reader.fail(
        f"a text or an object is expected, not {type_name(part)}",
        f"{where}[{i}]",
        'write each part as {"type": "text", "text": "..."}',
        "wrong_type",
      )
    kind = part.get("type", "text")
    if kind in _TOOL_PARTS:
      raise Skip(skips.TOOLS)
    others = {k for k, v in part.items() if not is_blank(v)}
    if kind not in _TEXT_PARTS or not others <= {"type", "text"}:
      if kind in _TEXT_PARTS and others & {"cache_control", "annotations"}:
        reader.unused.add("content[]." + sorted(others - {"type", "text"})[0])
      else:
        raise Skip(skips.NOT_TEXT)
    text = part.get("text")
    if not is_null(text):
      texts.append(reader.get(part, "text", where=f"{where}[{i}]."))
  return "".join(texts)


def _reason_to_exclude(message: Mapping[str, Any], reader: RecordReader) -> str:
  """Returns why a model may not be trained on a message, or ""."""
  for name in _WEIGHTS:
    value = message.get(name)
    if is_zero(value):
      return skips.WEIGHT_0
    if not is_null(value) and value not in (
      1,
      "1",
      "true",
      "True",
    ):
      reader.unused.add(f"messages[].{name} (other than 0 and 1)")
  reason = reason_to_exclude(message.get("label"))
  if reason == skips.UNKNOWN_LABEL:
    reader.unused.add("messages[].label")
  return reason


def split_system(turns: Turns) -> tuple[str, Turns]:
  """Returns the system text (or "") and the turns after it."""
  if turns and turns[0].role == "system":
    return turns[0].text, turns[1:]
  return "", turns


def add_system(turns: Turns, system: str) -> Turns:
  """Puts a system text ahead of a conversation.

  Raises:
    Skip: where the conversation begins with another system text.
  """
  if not system.strip():
    return turns
  present, rest = split_system(turns)
  if present and present.strip() != system.strip():
    raise Skip(skips.CONTRADICTION)
  return (Turn("system", present or system), *rest)


def _texts(turns: Turns) -> list[tuple[str, str]]:
  return [(t.role, t.text.strip()) for t in turns]


def merge(prompt: Turns, other: Turns) -> Turns:
  """Merges two accounts of what precedes a reply.

  One may lack the system turn, or be the beginning, the end or one user turn
  of the other. A conversation that begins with a reply continues the prompt.

  Raises:
    Skip: where they contradict each other.
  """
  if not prompt or not other:
    return prompt or other
  system, body = split_system(prompt)
  other_system, other_body = split_system(other)
  if system and other_system and system.strip() != other_system.strip():
    raise Skip(skips.CONTRADICTION)
  first, second = _texts(body), _texts(other_body)
  if second and second[0][0] == "assistant":
    merged = (*body, *other_body)
  elif not second or first[-len(second) :] == second:
    merged = body
  elif not first or second[: len(first)] == first:
    merged = other_body
  elif second[-len(first) :] == first:
    merged = other_body
  else:
    raise Skip(skips.CONTRADICTION)
  if merged and merged[-1].role != "user":
    raise Skip(skips.NOT_ANSWERING)
  return add_system(merged, system or other_system)
