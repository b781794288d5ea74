"""Public pairs: two replies to a prompt, of which one was preferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats import at as reading
from instructgpt_jax.data.formats.at import At, Skip
from instructgpt_jax.data.formats.demonstrations import conversation_field
from instructgpt_jax.data.formats.format import Format, choose, first_of, has
from instructgpt_jax.data.formats.texts import (
  add_input,
  optional_input,
  reply,
)
from instructgpt_jax.data.formats.turns import (
  Turns,
  check_texts,
  merge,
  read_message,
  read_messages,
  read_prompt,
  read_turns,
  refuse_encoded,
  transcript,
)
from instructgpt_jax.data.records import Ranking, Record, Turn

GRADED = "graded preferences, of which only the order is used"


def pair(
  turns: Turns, replies: tuple[str, str], better: float, at: At,
  labeler_id: str = "",
) -> Iterator[Record]:  # fmt: skip
  """Yields the ranking of a pair of which number `better` (1 or 2) won.

  Raises:
    Skip: for a tie (any other number), an empty or two identical replies.
  """
  first, second = (reply(text, at) for text in replies)
  if better not in (1, 2):
    raise Skip(reading.TIES)
  if first == second:
    raise Skip(reading.IDENTICAL)
  yield Ranking(
    turns=turns,
    completions=(first, second),
    ranks=(1, 2) if better == 1 else (2, 1),
    labeler_id=labeler_id,
    origin=at.origin,
  )


# Anthropic HH.


def _hh(obj: Any, at: At) -> Iterator[Record]:
  sides = []
  for name in ("chosen", "rejected"):
    turns = transcript(at.text(obj, name), lead=True)
    if not turns or len(turns) < 2:
      at.fail(
        "is no transcript that ends with a reply",
        name,
        "write it as '\\n\\nHuman: ...\\n\\nAssistant: ...', or give the"
        " record a 'prompt'",
        "no_transcript",
      )
    if turns[-1].role != "assistant":
      raise Skip(reading.NOT_ANSWERING)
    sides.append(turns)
  yield from _from_sides((), sides[0], sides[1], at)


# chosen/rejected.

_PROMPTS = ("prompt", "instruction", "question", "query", "input")
_CONVERSATIONS = ("conversations", "messages", "conversation")


def _preference(obj: Any, at: At) -> Iterator[Record]:
  """Yields the pair of chosen and rejected replies to a prompt."""
  _check_status(obj)
  _check_scores(obj, at)
  chosen, rejected = _side(obj, "chosen", at), _side(obj, "rejected", at)
  yield from _from_sides(_pair_prompt(obj, chosen, at), chosen, rejected, at)


def _check_status(obj: Mapping[str, Any]) -> None:
  """Skips the ties of distilabel's pairs, where neither reply was better."""
  ratings = obj.get("rating")
  if obj.get("status") == "tie" or (
    isinstance(ratings, list) and len(ratings) == 2 and ratings[0] == ratings[1]
  ):
    raise Skip(reading.TIES)


def _check_scores(obj: Mapping[str, Any], at: At) -> None:
  """Skips pairs whose scores tie, or contradict which was chosen."""
  for chosen, rejected in _SCORES:
    if reading.is_null(obj.get(chosen)) or reading.is_null(obj.get(rejected)):
      at.unused.update(n for n in (chosen, rejected) if obj.get(n) is not None)
      continue
    better, worse = at.number(obj, chosen), at.number(obj, rejected)
    if better == worse:
      raise Skip(reading.TIES)
    if better < worse:
      raise Skip(reading.CONTRADICTION)
    at.notes.add(GRADED)


_SCORES = (
  ("score_chosen", "score_rejected"),
  ("chosen_score", "rejected_score"),
  ("chosen_rating", "rejected_rating"),
  ("rating_chosen", "rating_rejected"),
  ("chosen-rating", "rejected-rating"),
)


def _side(obj: Mapping[str, Any], name: str, at: At) -> Turns:
  """Returns a reply, with its conversation where that comes with it."""
  value = obj.get(name)
  if isinstance(value, dict):
    turns: Turns = (read_message(value, name, at).turn,)
  elif isinstance(value, list):
    messages = read_messages(value, name, at)
    if not messages[-1].trained:
      raise Skip(reading.WEIGHT_0)
    turns = tuple(m.turn for m in messages)
    check_texts(turns[:-1], name, at)
  else:
    text = at.get(obj, name)
    refuse_encoded(text, name, at)
    whole = transcript(text)
    if whole and len(whole) > 1 and whole[-1].role == "assistant":
      turns = whole
    else:
      turns = (Turn("assistant", text),)
  if turns[-1].role != "assistant":
    at.fail(
      "does not end with a reply",
      name,
      "end it with an assistant's turn",
      "no_reply",
    )
  return turns


def _pair_prompt(obj: Mapping[str, Any], chosen: Turns, at: At) -> Turns:
  """Merges the prompt field and the conversation field of a pair."""
  name = choose(obj, _PROMPTS[:-1], at) or first_of(obj, ("input",))
  turns: Turns = ()
  if name and not reading.is_blank(obj[name]):
    if not isinstance(obj[name], list):
      at.get(obj, name)
    turns = read_prompt(obj[name], name, at)
    if name != "input":
      turns = add_input(turns, optional_input(obj, "input", at))
  field = choose(obj, _CONVERSATIONS, at)
  if not field or reading.is_blank(obj[field]):
    return turns
  other = read_turns(obj[field], field, at)
  if other[-1].role == "assistant":
    # UltraFeedback's `messages` are the prompt with the chosen reply.
    if other[-1].text.strip() != chosen[-1].text.strip():
      raise Skip(reading.ENDS_WITH_REPLY)
    other = other[:-1]
  if not other or other[-1].role != "user":
    raise Skip(reading.NO_USER)
  return merge(turns, other)


def _from_sides(
  prompt: Turns, chosen: Turns, rejected: Turns, at: At
) -> Iterator[Record]:
  """Yields the pair of two conversations that differ in the last reply."""
  replies = chosen[-1].text, rejected[-1].text
  if len(chosen) > 1 and len(rejected) > 1 and chosen[:-1] != rejected[:-1]:
    raise Skip(reading.PROMPTS_DIFFER)
  turns = merge(prompt, chosen[:-1] or rejected[:-1])
  if not turns:
    at.fail(
      "the field 'prompt' is missing",
      "prompt",
      "give the record a 'prompt', or whole conversations",
      "missing_field",
    )
  check_texts(turns, "prompt", at)
  if turns[-1].role != "user":
    raise Skip(reading.NOT_ANSWERING)
  yield from pair(turns, replies, 1, at)


def _rejected_response(obj: Any, at: At) -> Iterator[Record]:
  """ms-swift: a conversation whose last reply is the chosen one."""
  if conversation_field(obj):
    field = conversation_field(obj)
    chosen = read_turns(obj[field], field, at)
  else:
    prompt = read_prompt(at.get(obj, "query"), "query", at)
    chosen = (*prompt, Turn("assistant", at.get(obj, "response")))
  if chosen[-1].role != "assistant":
    raise Skip(reading.NOT_ANSWERING)
  if not reading.is_blank(obj.get("rejected_messages")):
    messages = obj["rejected_messages"]
    rejected = read_turns(messages, "rejected_messages", at)
    if rejected[-1].role != "assistant":
      raise Skip(reading.NOT_ANSWERING)
  else:
    rejected = (Turn("assistant", at.get(obj, "rejected_response")),)
  yield from _from_sides((), chosen, rejected, at)


def _openai(obj: Any, at: At) -> Iterator[Record]:
  """OpenAI's preference files."""
  source = at.get(obj, "input", dict)
  if any(not reading.is_blank(source.get(f)) for f in ("tools", "functions")):
    raise Skip(reading.TOOLS)
  reading.note_others(at, source, ("messages", "parallel_tool_calls"), "input")
  prompt = read_prompt(source.get("messages") or [], "input.messages", at)
  sides = [
    _side(obj, name, at)
    for name in ("preferred_output", "non_preferred_output")
  ]
  yield from _from_sides(prompt, sides[0], sides[1], at)


def _is_hh(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and isinstance(obj.get("chosen"), str)
    and "rejected" in obj
    and not any(obj.get(f) for f in (*_PROMPTS, *_CONVERSATIONS))
  )


def _is_rejected_response(obj: Any) -> bool:
  return isinstance(obj, dict) and (
    ("rejected_response" in obj or "rejected_messages" in obj)
    and bool(conversation_field(obj) or "query" in obj)
  )


PAIR = "rankings, K = 2"
_SCORE = "equal scores are a tie; an order other than chosen's skips the record"
_SIDE = "a reply: text, message, or whole conversation"
_PAIR_PROMPT = "the prompt; has to agree with the conversations"
HH = Format(
  "Anthropic HH transcripts",
  _is_hh,
  _hh,
  {"chosen": "the conversation with the better reply",
   "rejected": "the conversation with the worse reply"},
  ("chosen", "rejected"),
  result=PAIR,
)  # fmt: skip
PREFERENCE = Format(
  "prompt/chosen/rejected",
  has("chosen", "rejected"),
  _preference,
  {
    **dict.fromkeys(_PROMPTS[:-1], _PAIR_PROMPT),
    "input": "input below the instruction, or the prompt where it is alone",
    **dict.fromkeys(_CONVERSATIONS, "as the prompt; the chosen reply may"
                    " stand at its end"),
    "chosen": _SIDE,
    "rejected": _SIDE,
    **{name: _SCORE for names in _SCORES for name in names},
    "status": '"tie" is a tie',
    "rating": "two equal ratings are a tie",
  },
  ("prompt", "chosen", "rejected"),
  result=PAIR,
)  # fmt: skip
REJECTED_RESPONSE = Format(
  "messages with a rejected response",
  _is_rejected_response,
  _rejected_response,
  {
    **dict.fromkeys(_CONVERSATIONS, "the conversation with the chosen reply"),
    "query": "the prompt", "response": "the chosen reply",
    "rejected_response": "the rejected reply",
    "rejected_messages": "the conversation with the rejected reply",
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
