"""Public and own file formats: recognised by their fields, parsed to records.

A format is recognised from a file's first record. What does not fit it
afterwards is an error that names file, line and field. What public files hold
though nobody could train on it (an empty reply, a pair without a preference) is
a counted skip; in our own formats an empty reply is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from instructgpt_jax.data.records import (
  SPLITS,
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Record,
  Turn,
)
from instructgpt_jax.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_ROLES = {
  "user": "user",
  "human": "user",
  "prompter": "user",
  "assistant": "assistant",
  "gpt": "assistant",
  "bot": "assistant",
  "model": "assistant",
  "system": "system",
  "developer": "system",
}
_SPLIT_NAMES = {"": "", "validation": "valid", "val": "valid", "dev": "valid"}
_SPLIT_NAMES.update({name: name for name in SPLITS})
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_KINDS = {str: "text", list: "a list", dict: "an object", int: "a whole number"}
TIES = "rankings with only ties"
EMPTY = "empty completions"
UNRANKED = "replies without a preference"


class Skip(Exception):
  """A record that is left out and counted; its text is the reason."""


@dataclasses.dataclass(frozen=True)
class At:
  """Where a record stands, for errors."""

  file: str
  line: int

  @property
  def origin(self) -> str:
    return f"{self.file}:{self.line}"

  def fail(self, problem: str, field: str = "", fix: str = "") -> NoReturn:
    raise UserError(
      problem,
      file=self.file,
      line=self.line,
      field=field or None,
      fix=fix or "see docs/data.md for the fields of each format",
    )

  def get(self, obj: Mapping[str, Any], field: str, kind: type = str) -> Any:
    """A required field of a given type."""
    if field not in obj:
      near = difflib.get_close_matches(field, list(obj), n=1, cutoff=0.6)
      self.fail(
        f"the field {field!r} is missing",
        field,
        f"rename {near[0]!r} to {field!r}" if near else "",
      )
    value = obj[field]
    if not isinstance(value, kind) or isinstance(value, bool):
      self.fail(
        f"{_KINDS[kind]} is expected, not {_name(value)}",
        field,
        f"write {field!r} as {_KINDS[kind]}",
      )
    return value

  def text(self, obj: Mapping[str, Any], field: str) -> str:
    """A required field with more than blanks in it."""
    value = self.get(obj, field)
    if not value.strip():
      self.fail("is empty", field, "give it a text or delete the record")
    return value

  def optional(self, obj: Mapping[str, Any], field: str) -> str:
    """A text, or "" where it is absent or null."""
    return "" if obj.get(field) is None else self.get(obj, field)

  def identity(self, obj: Mapping[str, Any], field: str) -> str:
    """An optional id: a text or a whole number."""
    value = obj.get(field)
    if value is None:
      return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
      self.fail(f"text is expected, not {_name(value)}", field)
    return str(value)

  def split(self, obj: Mapping[str, Any]) -> str:
    value = self.optional(obj, "split")
    if value.lower() not in _SPLIT_NAMES:
      self.fail(
        f"{value!r} is no split",
        "split",
        "give one of " + ", ".join(map(repr, SPLITS)),
      )
    return _SPLIT_NAMES[value.lower()]


def _name(value: Any) -> str:
  if value is None:
    return "null"
  if isinstance(value, bool):
    return "true or false"
  return next(
    (n for k, n in _KINDS.items() if isinstance(value, k)), "a number"
  )


@dataclasses.dataclass(frozen=True)
class Format:
  """One file format.

  Attributes:
    name: what the command line calls it.
    fits: whether a record has this format, by its fields alone.
    parse: gives the records of one JSON value; may raise Skip.
    fields: what a record needs, for hints.
    own: whether it is our own, where an empty reply is an error.
  """

  name: str
  fits: Callable[[Any], bool]
  parse: Callable[[Any, At], Iterator[Record]]
  fields: tuple[str, ...] = ()
  own: bool = False


def _user(text: str) -> tuple[Turn, ...]:
  return (Turn("user", text),)


def _instruction(instruction: str, more: str) -> tuple[Turn, ...]:
  """Instruction and input as one user turn."""
  return _user(f"{instruction}\n\n{more}" if more.strip() else instruction)


def _clean(completion: str) -> str:
  text = completion.removesuffix(END_OF_TEXT)
  return text.strip() if text.strip() else ""


def _reply(completion: str) -> str:
  """A reply in a public file; one without a text is skipped."""
  text = _clean(completion)
  if not text:
    raise Skip(EMPTY)
  return text


def transcript(text: str) -> tuple[Turn, ...] | None:
  """The turns of "\\n\\nHuman: …\\n\\nAssistant: …", or None."""
  if not re.match(r"\s*(Human|Assistant):", text):
    return None
  parts = _HH_TURN.split("\n\n" + text.lstrip())
  roles = [_ROLES[r.lower()] for r in parts[1::2]]
  return tuple(
    Turn(role, words.strip())
    for role, words in zip(roles, parts[2::2], strict=True)
  )


def _prompt_turns(value: Any, field: str, at: At) -> tuple[Turn, ...]:
  """A prompt: a text, a transcript that ends with Assistant:, or messages."""
  if isinstance(value, list):
    turns = _messages(value, field, at)
    if turns[-1].role != "user":
      at.fail("ends with a reply", field, "end the prompt with a user's turn")
    return turns
  text = at.text({field: value}, field)
  turns = transcript(text)
  if turns and turns[-1] == Turn("assistant", "") and len(turns) > 1:
    return turns[:-1]
  return _user(text)


def _messages(value: Any, field: str, at: At) -> tuple[Turn, ...]:
  """OpenAI's {"role", "content"} or ShareGPT's {"from", "value"} turns."""
  if not isinstance(value, list) or not value:
    at.fail(
      f"a list of turns is expected, not {_name(value)}",
      field,
      'write it as [{"role": "user", "content": "..."}, ...]',
    )
  turns = []
  for i, message in enumerate(value):
    where = f"{field}[{i}]"
    if not isinstance(message, dict):
      at.fail(f"an object is expected, not {_name(message)}", where)
    turns.append(_message(message, where, at))
  return tuple(turns)


def _message(message: Mapping[str, Any], where: str, at: At) -> Turn:
  who, what = ("from", "value") if "from" in message else ("role", "content")
  role = at.get(message, who)
  if role.lower() not in _ROLES:
    at.fail(
      f"{role!r} is no known role",
      f"{where}.{who}",
      "use 'system', 'user' or 'assistant'",
    )
  content = message.get(what)
  if isinstance(content, list):
    content = "".join(
      part.get("text", "") for part in content if isinstance(part, dict)
    )
    message = {what: content}
  return Turn(_ROLES[role.lower()], at.get(message, what))


# Own formats.


def _own_common(obj: Mapping[str, Any], at: At) -> dict[str, Any]:
  return dict(
    turns=_prompt_turns(_present(obj, "prompt", at), "prompt", at),
    user_id=at.identity(obj, "user_id"),
    origin=at.origin,
    split=at.split(obj),
  )


def _present(obj: Mapping[str, Any], field: str, at: At) -> Any:
  if isinstance(obj.get(field), list):
    return obj[field]
  return at.get(obj, field)


def _demonstrations(obj: Any, at: At) -> Iterator[Record]:
  common = _own_common(obj, at)
  # Public files write nothing but the end of text; a bare "" is a mistake.
  completion = _reply(at.text(obj, "completion"))
  yield Demonstration(
    completion=completion, labeler_id=at.identity(obj, "labeler_id"), **common
  )


def _rankings(obj: Any, at: At) -> Iterator[Record]:
  common = _own_common(obj, at)
  completions = at.get(obj, "completions", list)
  ranks = at.get(obj, "ranks", list)
  if len(completions) < 2:
    at.fail(
      f"{len(completions)} completions cannot be ranked",
      "completions",
      "give at least 2",
    )
  for i, completion in enumerate(completions):
    if not isinstance(completion, str):
      at.fail(f"text is expected, not {_name(completion)}", f"completions[{i}]")
    if not _clean(completion):
      at.fail(
        "is empty",
        f"completions[{i}]",
        "give it a text or delete it with its rank",
      )
  for i, rank in enumerate(ranks):
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
      at.fail(
        f"{rank!r} is no rank", f"ranks[{i}]", "give whole numbers, 1 for best"
      )
  if len(ranks) != len(completions):
    at.fail(
      f"{len(ranks)} ranks for {len(completions)} completions",
      "ranks",
      "give each completion one rank",
    )
  if len(set(ranks)) == 1:
    raise Skip(TIES)
  yield Ranking(
    completions=tuple(_clean(c) for c in completions),
    ranks=tuple(ranks),
    labeler_id=at.identity(obj, "labeler_id"),
    **common,
  )


def _prompts(obj: Any, at: At) -> Iterator[Record]:
  yield Prompt(**_own_common(obj, at))


def _lenient_split(obj: Mapping[str, Any]) -> str:
  """Web texts carry all kinds of "split"; only ours count."""
  value = obj.get("split")
  return _SPLIT_NAMES.get(value, "") if isinstance(value, str) else ""


def _texts(obj: Any, at: At) -> Iterator[Record]:
  yield Document(
    text=at.text(obj, "text"), origin=at.origin, split=_lenient_split(obj)
  )


def _prompt_strings(obj: Any, at: At) -> Iterator[Record]:
  if not isinstance(obj, str):
    at.fail(f"text is expected, not {_name(obj)}")
  if not obj.strip():
    at.fail("the prompt is empty", "", "delete the line")
  yield Prompt(turns=_prompt_turns(obj, "prompt", at), origin=at.origin)


# Public demonstrations.


def _alpaca(obj: Any, at: At) -> Iterator[Record]:
  yield from _one(
    _instruction(at.text(obj, "instruction"), at.optional(obj, "input")),
    at.get(obj, "output"),
    at,
  )


def _dolly(obj: Any, at: At) -> Iterator[Record]:
  yield from _one(
    _instruction(at.text(obj, "instruction"), at.optional(obj, "context")),
    at.get(obj, "response"),
    at,
  )


def _gsm8k(obj: Any, at: At) -> Iterator[Record]:
  yield from _one(_user(at.text(obj, "question")), at.get(obj, "answer"), at)


def _one(turns: tuple[Turn, ...], reply: str, at: At) -> Iterator[Record]:
  yield Demonstration(turns=turns, completion=_reply(reply), origin=at.origin)


def _seeds(obj: Any, at: At) -> Iterator[Record]:
  instruction = at.text(obj, "instruction")
  for i, instance in enumerate(at.get(obj, "instances", list)):
    if not isinstance(instance, dict):
      at.fail("an object is expected", f"instances[{i}]")
    reply = _clean(at.get(instance, "output"))
    if reply:
      yield Demonstration(
        turns=_instruction(instruction, at.optional(instance, "input")),
        completion=reply,
        origin=at.origin,
      )


def _conversation(obj: Any, at: At) -> Iterator[Record]:
  """The last reply is the completion; without one it is a prompt."""
  field = "messages" if "messages" in obj else "conversations"
  turns = _messages(obj[field], field, at)
  if isinstance(obj.get("system"), str) and obj["system"].strip():
    turns = (Turn("system", obj["system"]), *turns)
  replies = [i for i, t in enumerate(turns) if t.role == "assistant"]
  common: dict[str, Any] = dict(
    origin=at.origin, user_id=at.identity(obj, "user_id")
  )
  if replies and any(t.role == "user" for t in turns[: replies[-1]]):
    yield Demonstration(
      turns=turns[: replies[-1]],
      completion=_reply(turns[replies[-1]].text),
      **common,
    )
  elif turns[-1].role == "user":
    yield Prompt(turns=turns, **common)
  else:
    raise Skip("conversations without a user's turn")


# Public rankings.


def _pair(
  turns: tuple[Turn, ...],
  replies: tuple[str, ...],
  better: float,
  at: At,
  labeler_id: str = "",
) -> Iterator[Record]:
  """A pair of which number `better` (1 or 2) won; anything else is a tie."""
  first, second = map(_reply, replies)
  if better not in (1, 2):
    raise Skip(TIES)
  if first == second:
    raise Skip("pairs of identical replies")
  yield Ranking(
    turns=turns,
    completions=(first, second),
    ranks=(1, 2) if better == 1 else (2, 1),
    labeler_id=labeler_id,
    origin=at.origin,
  )


def _hh(obj: Any, at: At) -> Iterator[Record]:
  sides = [transcript(at.text(obj, f)) for f in ("chosen", "rejected")]
  for field, turns in zip(("chosen", "rejected"), sides, strict=True):
    if not turns or turns[-1].role != "assistant" or len(turns) < 2:
      at.fail(
        "is no transcript that ends with a reply",
        field,
        "write it as '\\n\\nHuman: ...\\n\\nAssistant: ...'",
      )
  yield from _chosen(sides[0] or (), sides[1] or (), at)


def _chosen(
  chosen: tuple[Turn, ...], rejected: tuple[Turn, ...], at: At
) -> Iterator[Record]:
  """Two whole conversations that differ in the last reply."""
  if chosen[:-1] != rejected[:-1]:
    raise Skip("pairs whose prompts differ")
  yield from _pair(chosen[:-1], (chosen[-1].text, rejected[-1].text), 1, at)


def _preference(obj: Any, at: At) -> Iterator[Record]:
  """prompt | conversations | messages, with chosen and rejected replies."""
  field = next(
    (f for f in ("prompt", "conversations", "messages") if f in obj), "prompt"
  )
  turns: tuple[Turn, ...] = ()
  if field in obj:
    if field == "prompt":
      turns = _prompt_turns(_present(obj, field, at), field, at)
    else:
      turns = _messages(obj[field], field, at)
  if isinstance(obj.get("system"), str) and obj["system"].strip():
    turns = (Turn("system", obj["system"]), *turns)
  sides = []
  for name in ("chosen", "rejected"):
    value = obj.get(name)
    if isinstance(value, dict):
      sides.append((_message(value, name, at),))
    elif isinstance(value, list):
      sides.append(_messages(value, name, at))
    else:
      text = at.get(obj, name)
      said = transcript(text)
      whole = said and len(said) > 1 and said[-1].role == "assistant"
      sides.append(said if whole and said else (Turn("assistant", text),))
  for name, side in zip(("chosen", "rejected"), sides, strict=True):
    if side[-1].role != "assistant":
      at.fail("does not end with a reply", name)
  if len(sides[0]) > 1 or len(sides[1]) > 1:
    # The reply came with its whole conversation.
    yield from _chosen(sides[0], sides[1], at)
  elif not turns:
    at.fail("the field 'prompt' is missing", "prompt")
  else:
    yield from _pair(turns, (sides[0][0].text, sides[1][0].text), 1, at)


def _outputs(obj: Any, at: At) -> Iterator[Record]:
  """AlpacaEval's and LLMBar's pairs."""
  if "instruction" in obj:
    turns = _instruction(at.text(obj, "instruction"), at.optional(obj, "input"))
  else:
    turns = _user(at.text(obj, "input"))
  field = "preference" if "preference" in obj else "label"
  if field not in obj:
    at.get(obj, "preference")
  value = obj[field]
  if value is None:
    raise Skip(UNRANKED)
  if isinstance(value, bool) or not isinstance(value, int | float):
    at.fail(
      f"a number is expected, not {_name(value)}",
      field,
      "write 1 or 2 for the better output",
    )
  if not 0 <= value <= 2:
    at.fail(f"{value} is no preference", field, "write 1 or 2, 0 for a tie")
  # AlpacaEval writes 1.5, older files 0, for a tie.
  yield from _pair(
    turns,
    (at.get(obj, "output_1"), at.get(obj, "output_2")),
    value,
    at,
    at.identity(obj, "annotator"),
  )


def _pandalm(obj: Any, at: At) -> Iterator[Record]:
  """PandaLM: the majority of its annotators; no majority is a tie."""
  turns = _instruction(at.text(obj, "instruction"), at.optional(obj, "input"))
  fields = sorted(f for f in obj if f.startswith("annotator"))
  votes = [at.get(obj, f, int) for f in fields or ["annotator1"]]
  for field, vote in zip(fields, votes, strict=False):
    if vote not in (0, 1, 2):
      at.fail(f"{vote} is no label", field, "write 0, 1 or 2")
  winner = next((v for v in (1, 2) if 2 * votes.count(v) > len(votes)), 0)
  yield from _pair(
    turns, (at.get(obj, "response1"), at.get(obj, "response2")), winner, at
  )


def _tree(obj: Any, at: At) -> Iterator[Record]:
  """An Open-Assistant tree.

  Sibling replies with a rank are a Ranking, wherever they stand. A
  Demonstration and a Prompt come from each user turn that is reached through
  best replies alone: rank 0, or the only reply there is.
  """
  stack: list[tuple[Any, tuple[Turn, ...], bool]] = [
    (at.get(obj, "prompt", dict), (), True)
  ]
  while stack:
    node, before, best = stack.pop()
    turns = (*before, Turn("user", at.text(node, "text")))
    children = node.get("replies")
    if not isinstance(children, list):
      at.get(node, "replies", list)
    replies = [
      r
      for r in children or ()
      if isinstance(r, dict)
      and not r.get("deleted")
      and r.get("role") == "assistant"
      and _clean(at.get(r, "text"))
    ]
    ranked = [r for r in replies if r.get("rank") is not None]
    for reply in ranked:
      if at.get(reply, "rank", int) < 0:
        at.fail(f"{reply['rank']} is no rank", "rank", "0 is best")
    ranks = [r["rank"] for r in ranked]
    if len(set(ranks)) > 1:
      yield Ranking(
        turns=turns,
        completions=tuple(_clean(r["text"]) for r in ranked),
        ranks=tuple(rank - min(ranks) + 1 for rank in ranks),
        origin=at.origin,
      )
    if best:
      yield Prompt(turns=turns, origin=at.origin)
    top = min(ranks) if ranks else None
    chosen = None
    for reply in replies:
      if reply.get("rank") == top and (ranks or len(replies) == 1):
        chosen = reply
        break
    if best and chosen is not None:
      yield Demonstration(
        turns=turns, completion=_clean(chosen["text"]), origin=at.origin
      )
    for reply in reversed(replies):
      after = (*turns, Turn("assistant", _clean(reply["text"])))
      for child in reversed(reply.get("replies") or []):
        if isinstance(child, dict) and not child.get("deleted"):
          stack.append((child, after, best and reply is chosen))


# Public prompts.


def _unranked(obj: Any, at: At) -> Iterator[Record]:
  yield Prompt(turns=_user(at.text(obj, "prompt")), origin=at.origin)


def _predictions(obj: Any, at: At) -> Iterator[Record]:
  yield Prompt(
    turns=_instruction(at.text(obj, "instruction"), at.optional(obj, "input")),
    origin=at.origin,
  )


def _questions(obj: Any, at: At) -> Iterator[Record]:
  turns = obj.get("turns")
  if isinstance(turns, list) and turns:
    yield Prompt(
      turns=_user(at.text({"turns": turns[0]}, "turns")), origin=at.origin
    )
  else:
    field = "text" if "text" in obj else "turns"
    yield Prompt(turns=_user(at.text(obj, field)), origin=at.origin)


def _has(*fields: str, without: tuple[str, ...] = ()) -> Callable[[Any], bool]:
  def fits(obj: Any) -> bool:
    return (
      isinstance(obj, dict)
      and all(f in obj for f in fields)
      and not any(f in obj for f in without)
    )

  return fits


def _is_tree(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and isinstance(obj.get("prompt"), dict)
    and ("message_tree_id" in obj or "replies" in obj["prompt"])
  )


def _is_hh(obj: Any) -> bool:
  return (
    _has("chosen", "rejected", without=("prompt",))(obj)
    and isinstance(obj["chosen"], str)
    and not any(f in obj for f in ("conversations", "messages"))
  )


def _is_unranked(obj: Any) -> bool:
  return (
    _has("prompt", "completions", without=("ranks",))(obj)
    and isinstance(obj["completions"], list)
    and bool(obj["completions"])
    and isinstance(obj["completions"][0], dict)
  )


def _is_question(obj: Any) -> bool:
  return (
    isinstance(obj, dict)
    and "question_id" in obj
    and ("turns" in obj or ("text" in obj and "category" in obj))
  )


FORMATS: tuple[Format, ...] = (
  Format("prompts, one JSON text a line", lambda o: isinstance(o, str),
         _prompt_strings),
  Format("Open-Assistant trees", _is_tree, _tree),
  Format("Anthropic HH transcripts", _is_hh, _hh, ("chosen", "rejected")),
  Format("prompt/chosen/rejected", _has("chosen", "rejected"), _preference,
         ("prompt", "chosen", "rejected")),
  Format("answers without ranks", _is_unranked, _unranked),
  Format("own rankings", lambda o: _has("prompt", "completions")(o)
         or _has("prompt", "ranks")(o) or _has("completions", "ranks")(o),
         _rankings, ("prompt", "completions", "ranks"), own=True),
  Format("messages",
         lambda o: _has("messages")(o) or _has("conversations")(o),
         _conversation, ("messages",)),
  Format("AlpacaEval/LLMBar pairs", _has("output_1", "output_2"), _outputs,
         ("instruction", "output_1", "output_2", "preference")),
  Format("PandaLM pairs", _has("response1", "response2"), _pandalm,
         ("instruction", "response1", "response2", "annotator1")),
  Format("self-instruct seeds", _has("instruction", "instances"), _seeds,
         ("instruction", "instances")),
  Format("self-instruct predictions",
         _has("prompt", "instruction", "response", "target"), _predictions),
  Format("Dolly", _has("instruction", "response"), _dolly,
         ("instruction", "context", "response")),
  Format("Alpaca", _has("instruction", "output"), _alpaca,
         ("instruction", "input", "output")),
  Format("own demonstrations", _has("prompt", "completion"), _demonstrations,
         ("prompt", "completion"), own=True),
  Format("GSM8K questions and answers", _has("question", "answer"), _gsm8k,
         ("question", "answer")),
  Format("benchmark questions", _is_question, _questions),
  Format("own prompts", _has("prompt"), _prompts, ("prompt",), own=True),
  Format("own text", _has("text"), _texts, ("text",), own=True),
)  # fmt: skip
PLAIN = Format("plain text", lambda o: False, lambda o, at: iter(()))

# What a record of the wanted kind needs at least, for "field is missing".
_NEEDED = {
  Demonstration: "own demonstrations",
  Ranking: "own rankings",
  Prompt: "own prompts",
  Document: "own text",
}


def by_name(name: str) -> Format:
  return next(f for f in FORMATS if f.name == name)


def recognise(obj: Any, at: At, wanted: type | None = None) -> Format:
  """The format of a record, or an error that names the nearest one."""
  for known in FORMATS:
    if known.fits(obj):
      return known
  if not isinstance(obj, dict):
    at.fail(
      f"an object or a text is expected, not {_name(obj)}",
      "",
      "write one JSON object a line",
    )
  present = set(obj)
  candidates = [f for f in FORMATS if f.fields]

  def overlap(known: Format) -> float:
    hits = sum(
      bool(difflib.get_close_matches(f, list(present), n=1, cutoff=0.6))
      for f in known.fields
    )
    bonus = 0.1 if wanted and known.name == _NEEDED.get(wanted) else 0.0
    return hits / len(known.fields) + bonus

  near = max(candidates, key=overlap)
  if overlap(near) < 0.3 and wanted in _NEEDED:
    near = by_name(_NEEDED[wanted])
  missing = [f for f in near.fields if f not in present]
  shown = ", ".join(map(repr, sorted(present)[:6])) or "none"
  at.fail(
    f"no known format has these fields ({shown});"
    f" for {near.name}, {missing[0] if missing else near.fields[0]!r}"
    " is missing",
    missing[0] if missing else "",
    f"{near.name} need " + ", ".join(near.fields) + "; see docs/data.md",
  )
