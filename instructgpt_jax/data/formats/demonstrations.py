"""Public demonstrations: instructions with one reply, and conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.format import Format, choose, first_of, has
from instructgpt_jax.data.formats.json_values import is_blank
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import clean, instructed, reply
from instructgpt_jax.data.formats.turns import (
  Message,
  Turns,
  check_texts,
  read_message,
  read_messages,
  read_prompt,
)
from instructgpt_jax.data.records import Demonstration, Prompt, Record, Turn

_CONVERSATIONS = ("messages", "conversations", "conversation")
_OPEN_END = (
  "conversations that end with a user's turn (a prompt; its last reply is the"
  " demonstration)"
)


def single_reply(
  prompt: str, more: str, answer: str
) -> Callable[[Any, RecordReader], Iterator[Record]]:
  """Returns a parser of a prompt, an optional input and a reply by name."""

  def parse(obj: Any, reader: RecordReader) -> Iterator[Record]:
    if more:
      turns = instructed(obj, prompt, more, reader)
    elif isinstance(obj.get(prompt), list):
      turns = read_prompt(obj[prompt], prompt, reader)
    else:
      turns = read_prompt(reader.text(obj, prompt), prompt, reader)
    completion = reply(reader.get(obj, answer), reader)
    yield Demonstration(
      turns=turns, completion=completion, origin=reader.origin
    )

  return parse


def _seeds(obj: Any, reader: RecordReader) -> Iterator[Record]:
  reader.text(obj, "instruction")
  for i, instance in enumerate(reader.get(obj, "instances", list)):
    if not isinstance(instance, dict):
      reader.fail("an object is expected", f"instances[{i}]", code="wrong_type")
    completion = clean(reader.get(instance, "output", where=f"instances[{i}]."))
    reader.note_others(instance, ("input", "output"), "instances[]")
    if completion:
      yield Demonstration(
        turns=instructed({**obj, **instance}, "instruction", "input", reader),
        completion=completion,
        origin=reader.origin,
      )


def conversation_field(obj: Mapping[str, Any]) -> str:
  """Returns the field that holds a record's conversation, or ""."""
  return first_of(obj, _CONVERSATIONS)


def _conversation(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the last reply that may be learned, and an open end's prompt."""
  field = choose(obj, _CONVERSATIONS, reader) or _CONVERSATIONS[0]
  if field not in obj:
    reader.get(obj, field, list)
  messages = read_messages(obj[field], field, reader)
  _check_prompt(obj, messages, reader)
  answer = choose(obj, ("completion", "response"), reader)
  if not is_blank(obj.get(answer)):
    messages = add_answer(messages, obj, answer, reader)
  yield from _last_reply(messages, field, reader)


def add_answer(
  messages: list[Message],
  obj: Mapping[str, Any],
  field: str,
  reader: RecordReader,
) -> list[Message]:
  """Returns a conversation with the answer of another field at its end.

  The answer is a text, a message, or messages that may repeat the conversation.

  Raises:
    Skip: where the conversation has another reply or other turns.
  """
  value = obj[field]
  if isinstance(value, list):
    *before, answer = read_messages(value, field, reader)
  elif isinstance(value, dict):
    before, answer = [], read_message(value, field, reader)
  else:
    before, answer = [], Message(Turn("assistant", reader.get(obj, field)))
  if answer.turn.role != "assistant":
    raise Skip(skips.NOT_ANSWERING)
  last = messages[-1].turn
  context = messages if last.role == "user" else messages[:-1]
  turns = [m.turn for m in context]
  repeated = [m.turn for m in before]
  if repeated and turns[-len(repeated) :] != repeated:
    raise Skip(skips.CONTRADICTION)
  if last.role == "user":
    return [*messages, answer]
  if clean(last.text) != clean(answer.turn.text):
    raise Skip(skips.CONTRADICTION)
  excluded = messages[-1].excluded or answer.excluded
  return [*context, Message(last, excluded)]


def _check_prompt(
  obj: Mapping[str, Any], messages: list[Message], reader: RecordReader
):
  """Skips a record whose `prompt` is no part of its conversation."""
  if is_blank(obj.get("prompt")):
    return
  prompt = read_prompt(obj["prompt"], "prompt", reader)
  texts = [m.turn.text.strip() for m in messages if m.turn.role == "user"]
  if prompt[-1].text.strip() not in texts:
    raise Skip(skips.CONTRADICTION)


def _last_reply(
  messages: list[Message], field: str, reader: RecordReader
) -> Iterator[Record]:
  turns: Turns = tuple(m.turn for m in messages)
  if not any(t.role == "user" for t in turns):
    raise Skip(skips.NO_USER)
  ends_with_user = turns[-1].role == "user"
  reader.context_turns = max(
    i for i, t in enumerate(turns, 1) if t.role == "user"
  )
  if not ends_with_user and turns[-1].role != "assistant":
    raise Skip(skips.NOT_ANSWERING)
  replies = [
    i
    for i, t in enumerate(turns)
    if t.role == "assistant" and any(u.role == "user" for u in turns[:i])
  ]
  if ends_with_user:
    check_texts(turns, field, reader)
    yield Prompt(turns=turns, origin=reader.origin)
    if not replies:
      return
    reader.notes.add(_OPEN_END)
  elif not replies:
    raise Skip(skips.NO_USER)
  learnable = [i for i in replies if not messages[i].excluded]
  if not learnable:
    raise Skip(messages[replies[-1]].excluded)
  last = learnable[-1]
  if turns[last - 1].role != "user":
    raise Skip(skips.NOT_ANSWERING)
  check_texts(turns[:last], field, reader)
  yield Demonstration(
    turns=turns[:last],
    completion=reply(turns[last].text, reader),
    origin=reader.origin,
  )


def _batch(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the records of the messages in an OpenAI batch request."""
  body = reader.get(obj, "body", dict)
  if any(not is_blank(body.get(f)) for f in ("tools", "functions")):
    raise Skip(skips.TOOLS)
  reader.note_others(body, ("messages", "model", *_SAMPLING), "body")
  messages = read_messages(body.get("messages"), "body.messages", reader)
  yield from _last_reply(messages, "body.messages", reader)


def _is_batch(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and isinstance(obj.get("body"), dict)
    and "messages" in obj["body"]
  )


_SAMPLING = (
  "temperature", "top_p", "max_tokens", "max_completion_tokens", "n", "seed",
  "stop", "stream", "frequency_penalty", "presence_penalty", "tool_choice",
)  # fmt: skip
_FIRST = "the prompt"
_INPUT = 'input below the prompt; placeholders such as "N/A" are no input'
_REPLY = "the reply"


def _single(name: str, prompt: str, answer: str, more: str = "",
            irrelevant: tuple[str, ...] = (), without: tuple[str, ...] = (),
            ) -> Format:  # fmt: skip
  fields = {prompt: _FIRST, **({more: _INPUT} if more else {}), answer: _REPLY}
  return Format(
    name,
    has(prompt, answer, without=without),
    single_reply(prompt, more, answer),
    fields,
    (prompt, answer),
    irrelevant,
    result="demonstrations",
  )


ALPACA = _single("Alpaca", "instruction", "output", "input", ("text",))
DOLLY = _single("Dolly", "instruction", "response", "context", ("category",))
QUESTIONS = _single("GSM8K questions and answers", "question", "answer")
# OpenOrca's system prompt is read as the common field of that name.
OPEN_ORCA = _single("OpenOrca", "question", "response")
QUERIES = _single("query/response", "query", "response")
P3 = _single(
  "P3", "inputs_pretokenized", "targets_pretokenized",
  irrelevant=("inputs", "targets"),
)  # fmt: skip
FLAN = _single("FLAN", "inputs", "targets")
INPUTS = _single(
  "input/output", "input", "output", without=("instruction", "output_1")
)
RESPONSES = _single("prompt/response", "prompt", "response")
SEEDS = Format(
  "self-instruct seeds",
  has("instruction", "instances"),
  _seeds,
  {
    "instruction": _FIRST,
    "instances": "a demonstration each: `input` as in Alpaca, `output`; empty"
    " outputs are left out",
  },
  ("instruction", "instances"),
  ("name", "is_classification", "motivation_app"),
  result="a demonstration per instance",
)
MESSAGES = Format(
  "messages",
  lambda obj: isinstance(obj, dict) and bool(conversation_field(obj)),
  _conversation,
  {
    "messages": "the conversation: `role` and `content`",
    "conversations": "the same: `from` and `value`, or `role` and `content`",
    "conversation": "the same",
    **dict.fromkeys(
      ("completion", "response"),
      "the reply where the user's turn is last; the last reply otherwise",
    ),
    "prompt": "compared with the user's turns; another text skips and counts"
    " the record",
  },
  ("messages",),
  result="a demonstration: the last reply whose weight is not 0, given all"
  " before it; a prompt where the user's turn is last",
)
BATCH = Format(
  "OpenAI batch requests",
  _is_batch,
  _batch,
  {"body": "`messages` as in messages; tools skip and count the record"},
  irrelevant=("custom_id", "method", "url"),
  result="prompts; demonstrations where the last message is a reply",
)
