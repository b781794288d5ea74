"""Public pairs: two replies to a prompt, one of them preferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.demonstrations import (
  add_answer,
  conversation_field,
)
from instructgpt_jax.data.formats.format import Format, choose, first_of, has
from instructgpt_jax.data.formats.json_values import is_blank, is_null
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import (
  add_input,
  agreeing_prompt,
  optional_input,
  read_named_prompt,
  reply,
)
from instructgpt_jax.data.formats.transcripts import transcript
from instructgpt_jax.data.formats.turns import (
  Turns,
  check_texts,
  merge,
  read_message,
  read_messages,
  read_prompt,
  read_replied,
  refuse_encoded,
)
from instructgpt_jax.data.records import Ranking, Record, Turn

ORDER_ONLY = "graded preferences, whose order alone is used"
GRADED = f"{ORDER_ONLY} without --reward.margin=grade"


def pair(
  turns: Turns, replies: tuple[str, str], better: float, reader: RecordReader,
  labeler_id: str = "", *, grade: float | None = None,
) -> Iterator[Record]:  # fmt: skip
  """Yields the ranking of a pair whose reply number `better` (1 or 2) won.

  Args:
    turns: the prompt.
    replies: the two replies.
    better: number of the better one.
    reader: of the record.
    labeler_id: who compared them.
    grade: by how much it is better, if the record says so.

  Raises:
    Skip: for a tie (any other number), an empty or two identical replies.
  """
  first, second = (reply(text, reader) for text in replies)
  if better not in (1, 2):
    raise Skip(skips.TIES)
  if first == second:
    raise Skip(skips.IDENTICAL)
  grades = () if grade is None else (grade, 0.0)
  yield Ranking(
    turns=turns,
    completions=(first, second),
    ranks=(1, 2) if better == 1 else (2, 1),
    grades=grades if better == 1 else grades[::-1],
    labeler_id=labeler_id,
    origin=reader.origin,
  )


# Anthropic HH.


def _hh(obj: Any, reader: RecordReader) -> Iterator[Record]:
  if any(not is_blank(obj.get(f)) for f in (*_PROMPTS, *_CONVERSATIONS)):
    yield from _preference(obj, reader)
    return
  grade = _check_order(obj, reader)
  sides = []
  for name in ("chosen", "rejected"):
    turns = transcript(reader.text(obj, name), lead=True)
    if not turns or len(turns) < 2:
      reader.fail(
        "is no transcript that ends with a reply",
        name,
        "write it as '\\n\\nHuman: ...\\n\\nAssistant: ...', or give the"
        " record a 'prompt'",
        "no_transcript",
      )
    if turns[-1].role != "assistant":
      raise Skip(skips.NOT_ANSWERING)
    sides.append(turns)
  yield from _from_sides((), sides[0], sides[1], reader, grade)


# chosen/rejected.

_PROMPTS = ("prompt", "instruction", "question", "query", "input")
_CONVERSATIONS = ("conversations", "messages", "conversation")


def _preference(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the pair of chosen and rejected replies to a prompt."""
  grade = _check_order(obj, reader)
  chosen, rejected = (
    _side(obj, "chosen", reader),
    _side(obj, "rejected", reader),
  )
  prompt = _pair_prompt(obj, chosen, reader)
  chosen, rejected = _with_leads(
    obj, ("chosen", "rejected"), prompt, chosen, rejected
  )
  blank = first_of(obj, _PROMPTS)
  if not prompt and blank and len(chosen) == len(rejected) == 1:
    prompt = read_named_prompt(obj, blank, reader)
  yield from _from_sides(prompt, chosen, rejected, reader, grade)


def _check_order(obj: Mapping[str, Any], reader: RecordReader) -> float | None:
  """Skips ties, and pairs whose other fields contradict which was chosen.

  Returns:
    By how much the chosen reply is better: the margin, else the difference of
    the scores; None without either.
  """
  _check_status(obj)
  grade = _check_scores(obj, reader)
  if not is_null(obj.get("margin")):
    grade = _check_margin(reader.number(obj, "margin"), reader)
  return grade


def _check_margin(margin: float, reader: RecordReader) -> float:
  """Returns a margin; skips a tie or a contradiction."""
  if margin == 0:
    raise Skip(skips.TIES)
  if margin < 0:
    raise Skip(skips.CONTRADICTION)
  reader.notes.add(GRADED)
  return margin


def _check_status(obj: Mapping[str, Any]) -> None:
  """Skips the ties of distilabel's pairs, where neither reply was better."""
  ratings = obj.get("rating")
  if obj.get("status") == "tie" or (
    isinstance(ratings, list) and len(ratings) == 2 and ratings[0] == ratings[1]
  ):
    raise Skip(skips.TIES)


def _check_scores(obj: Mapping[str, Any], reader: RecordReader) -> float | None:
  """Skips pairs whose scores tie, or contradict which was chosen.

  Returns:
    The difference of the first two scores; None without scores.
  """
  grades = []
  for chosen, rejected in _SCORES:
    if is_null(obj.get(chosen)) or is_null(obj.get(rejected)):
      reader.unused.update(
        n for n in (chosen, rejected) if obj.get(n) is not None
      )
      continue
    better, worse = reader.number(obj, chosen), reader.number(obj, rejected)
    margin = better - worse if better != worse else 0
    grades.append(_check_margin(margin, reader))
  return grades[0] if grades else None


_SCORES = (
  ("score_chosen", "score_rejected"),
  ("chosen_score", "rejected_score"),
  ("chosen_rating", "rejected_rating"),
  ("rating_chosen", "rating_rejected"),
  ("chosen-rating", "rejected-rating"),
)


def _side(obj: Mapping[str, Any], name: str, reader: RecordReader) -> Turns:
  """Returns a reply, with its conversation where that comes with it."""
  value = obj.get(name)
  if isinstance(value, dict):
    message = read_message(value, name, reader)
    if message.excluded:
      raise Skip(message.excluded)
    turns: Turns = (message.turn,)
  elif isinstance(value, list):
    turns = read_replied(value, name, reader)
    check_texts(turns[:-1], name, reader)
  else:
    text = reader.get(obj, name)
    refuse_encoded(text, name, reader)
    whole = transcript(text)
    if whole and len(whole) > 1 and whole[-1].role == "assistant":
      turns = whole
    else:
      turns = (Turn("assistant", text),)
  if turns[-1].role != "assistant":
    reader.fail(
      "does not end with a reply",
      name,
      "end it with an assistant's turn",
      "no_reply",
    )
  return turns


def _with_leads(
  obj: Mapping[str, Any],
  names: tuple[str, str],
  prompt: Turns,
  chosen: Turns,
  rejected: Turns,
) -> tuple[Turns, Turns]:
  """Returns replies whose transcripts have a text ahead of them as turns.

  A reply may quote a transcript too. It is one itself where it ends with the
  prompt's question and a reply, or where both replies begin in the same way.
  """
  sides = []
  for name, turns in zip(names, (chosen, rejected), strict=True):
    whole, text = None, obj.get(name)
    if isinstance(text, str) and len(turns) == 1:
      whole = transcript(text, lead=True)
    if whole and not (
      len(whole) > 2
      and (whole[-2].role, whole[-1].role) == ("user", "assistant")
    ):
      whole = None
    sides.append((turns, whole))
  (_, first), (_, second) = sides
  same = first and second and first[:-1] == second[:-1]
  question = prompt[-1].text.strip() if prompt else None
  chosen, rejected = (
    whole if whole and (same or whole[-2].text == question) else turns
    for turns, whole in sides
  )
  return chosen, rejected


def _pair_prompt(
  obj: Mapping[str, Any], chosen: Turns, reader: RecordReader
) -> Turns:
  """Merges the prompt field and the conversation field of a pair."""
  turns = agreeing_prompt(obj, _PROMPTS[:-1], reader)
  if turns:
    turns = add_input(turns, optional_input(obj, "input", reader))
  elif not is_blank(obj.get("input")):
    turns = read_named_prompt(obj, "input", reader)
  field = choose(obj, _CONVERSATIONS, reader)
  if not field or is_blank(obj[field]):
    return turns
  other = read_replied(obj[field], field, reader)
  check_texts(other, field, reader)
  if other[-1].role == "assistant":
    # UltraFeedback's `messages` are the prompt with the chosen reply.
    if other[-1].text.strip() != chosen[-1].text.strip():
      raise Skip(skips.ENDS_WITH_REPLY)
    other = other[:-1]
  if not other or other[-1].role != "user":
    raise Skip(skips.NO_USER)
  return merge(turns, other)


def _from_sides(
  prompt: Turns,
  chosen: Turns,
  rejected: Turns,
  reader: RecordReader,
  grade: float | None = None,
) -> Iterator[Record]:
  """Yields the pair of two conversations that differ in the last reply."""
  replies = chosen[-1].text, rejected[-1].text
  if len(chosen) > 1 and len(rejected) > 1 and chosen[:-1] != rejected[:-1]:
    raise Skip(skips.PROMPTS_DIFFER)
  turns = merge(prompt, chosen[:-1] or rejected[:-1])
  if not turns:
    reader.fail(
      "the field 'prompt' is missing",
      "prompt",
      "give the record a 'prompt', or whole conversations",
      "missing_field",
    )
  check_texts(turns, "prompt", reader)
  if turns[-1].role != "user":
    raise Skip(skips.NOT_ANSWERING)
  yield from pair(turns, replies, 1, reader, grade=grade)


def _rejected_response(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields ms-swift's pair; the last reply of its messages is chosen."""
  grade = None
  if not is_null(obj.get("margin")):
    grade = _check_margin(reader.number(obj, "margin"), reader)
  field = choose(obj, _CONVERSATIONS, reader)
  prompt: Turns = ()
  if not is_blank(obj.get("query")):
    prompt = read_named_prompt(obj, "query", reader)
  if not is_blank(obj.get(field)):
    messages = read_messages(obj[field], field, reader)
    if not is_blank(obj.get("response")):
      messages = add_answer(messages, obj, "response", reader)
    if messages[-1].excluded and messages[-1].turn.role == "assistant":
      raise Skip(messages[-1].excluded)
    chosen = tuple(m.turn for m in messages)
    check_texts(chosen[:-1], field, reader)
  else:
    if not prompt and field and "query" not in obj:
      raise Skip(skips.NO_TURNS)
    prompt = prompt or read_named_prompt(obj, "query", reader)
    chosen = _side(obj, "response", reader)
  if chosen[-1].role != "assistant":
    raise Skip(skips.NOT_ANSWERING)
  chosen, rejected = _with_leads(
    obj,
    ("response", "rejected_response"),
    prompt,
    chosen,
    _rejected(obj, reader),
  )
  yield from _from_sides(prompt, chosen, rejected, reader, grade)


def _rejected(obj: Mapping[str, Any], reader: RecordReader) -> Turns:
  """Returns ms-swift's rejected reply, or the conversation it ends."""
  field, text = "rejected_messages", obj.get("rejected_response")
  if is_blank(obj.get(field)):
    return _side(obj, "rejected_response", reader)
  rejected = read_replied(obj[field], field, reader)
  check_texts(rejected[:-1], field, reader)
  if rejected[-1].role != "assistant":
    raise Skip(skips.NOT_ANSWERING)
  if not is_blank(text):
    reply_text = reader.get(obj, "rejected_response")
    if reply_text.strip() != rejected[-1].text.strip():
      raise Skip(skips.CONTRADICTION)
  return rejected


def _openai(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the pair of an OpenAI preference file."""
  source = reader.get(obj, "input", dict)
  if any(not is_blank(source.get(f)) for f in ("tools", "functions")):
    raise Skip(skips.TOOLS)
  reader.note_others(source, ("messages", "parallel_tool_calls"), "input")
  prompt = read_prompt(source.get("messages") or [], "input.messages", reader)
  sides = [
    _side(obj, name, reader)
    for name in ("preferred_output", "non_preferred_output")
  ]
  yield from _from_sides(prompt, sides[0], sides[1], reader)


def _is_hh(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and isinstance(obj.get("chosen"), str)
    and "rejected" in obj
    and all(is_blank(obj.get(f)) for f in (*_PROMPTS, *_CONVERSATIONS))
  )


def _is_rejected_response(obj: Any) -> bool:
  return isinstance(obj, dict) and (
    ("rejected_response" in obj or "rejected_messages" in obj)
    and bool(conversation_field(obj) or "query" in obj)
  )


PAIR = "rankings, K = 2"
_SCORE = (
  "the difference is the grade; equal scores are a tie; an order other than"
  " chosen's skips the record"
)
_SIDE = "a reply: text, message, or whole conversation"
_PAIR_PROMPT = (
  "the prompt; has to agree with the conversations and with other prompts"
)
_MARGIN = "the grade, above 0; 0 is a tie, and below 0 skips the record"
_ORDER = {
  **{name: _SCORE for names in _SCORES for name in names},
  "margin": _MARGIN,
  "status": '"tie" is a tie',
  "rating": "two equal ratings are a tie",
}
_PAIR_PROMPTS = {
  **dict.fromkeys(_PROMPTS[:-1], _PAIR_PROMPT),
  "input": "input below the instruction, or the prompt where it is alone",
  **dict.fromkeys(_CONVERSATIONS, "as the prompt; the chosen reply may"
                  " stand at its end"),
}  # fmt: skip
HH = Format(
  "Anthropic HH transcripts",
  _is_hh,
  _hh,
  {"chosen": "the conversation with the better reply",
   "rejected": "the conversation with the worse reply",
   **_PAIR_PROMPTS, **_ORDER},
  ("chosen", "rejected"),
  result=PAIR,
)  # fmt: skip
PREFERENCE = Format(
  "prompt/chosen/rejected",
  has("chosen", "rejected"),
  _preference,
  {**_PAIR_PROMPTS, "chosen": _SIDE, "rejected": _SIDE, **_ORDER},
  ("prompt", "chosen", "rejected"),
  result=PAIR,
)
REJECTED_RESPONSE = Format(
  "messages with a rejected response",
  _is_rejected_response,
  _rejected_response,
  {
    **dict.fromkeys(_CONVERSATIONS, "the conversation with the chosen reply"),
    "query": "the prompt", "response": "the chosen reply",
    "rejected_response": "the rejected reply",
    "rejected_messages": "the conversation with the rejected reply",
    "margin": _MARGIN,
  },
  ("messages", "rejected_response"),
  result=PAIR,
)  # fmt: skip
OPENAI = Format(
  "OpenAI preferences",
  has("input", "preferred_output", "non_preferred_output"),
  _openai,
  {
    "input": "`messages`: the prompt; tools skip and count the record",
    "preferred_output": "the better reply",
    "non_preferred_output": "the worse reply",
  },
  ("input", "preferred_output", "non_preferred_output"),
  result=PAIR,
)
