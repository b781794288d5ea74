"""The four kinds of record that files are read into."""

from __future__ import annotations

import dataclasses

from instructgpt_jax import configs

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Turn:
  """One message of a conversation.

  Attributes:
    role: one of ROLES.
    text: what it says.
    learnable: whether a model may be trained on it, if it is an assistant's.
  """

  role: str
  text: str
  learnable: bool = dataclasses.field(default=True, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A conversation that ends with the user's turn."""

  turns: tuple[Turn, ...]
  user_id: str = ""
  origin: str = ""  # file:line
  split: str = ""  # one of SPLITS, or "" where the file does not say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
  """A prompt and the reply that a labeler wrote."""

  turns: tuple[Turn, ...]
  completion: str
  user_id: str = ""
  labeler_id: str = ""
  origin: str = ""
  split: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
  """A prompt with K ranked replies; rank 1 is best, equal ranks are ties.

  `grades` has a number for each reply, highest best, on the source's own scale;
  it is () where the source only orders the replies.
  """

  turns: tuple[Turn, ...]
  completions: tuple[str, ...]
  ranks: tuple[int, ...]
  grades: tuple[float, ...] = ()
  user_id: str = ""
  labeler_id: str = ""
  origin: str = ""
  split: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A text for pretraining."""

  text: str
  origin: str = ""
  split: str = ""


Record = Prompt | Demonstration | Ranking | Document


def replies(record: Prompt | Demonstration | Ranking) -> tuple[str, ...]:
  """Returns the replies of a record; a prompt has none."""
  if isinstance(record, Demonstration):
    return (record.completion,)
  return record.completions if isinstance(record, Ranking) else ()


def separator(data: configs.Data) -> str:
  """Returns the turn separator, with its escapes \\n and \\t resolved."""
  return data.turn_separator.replace("\\n", "\n").replace("\\t", "\t")


def prompt_text(turns: tuple[Turn, ...], data: configs.Data) -> str:
  """Returns a conversation as the text that a reply follows.

  "Human: hi\\n\\nAssistant:" for one turn. A system turn stands alone, without
  a tag. The text ends with the bare assistant tag; see `completion_text`.
  """
  tags = {"user": data.user_tag, "assistant": data.assistant_tag, "system": ""}
  parts = [
    f"{tags[t.role]} {t.text}" if tags[t.role] else t.text for t in turns
  ]
  return separator(data).join([*parts, data.assistant_tag])


def earlier_replies(
  turns: tuple[Turn, ...], data: configs.Data
) -> list[tuple[int, int]]:
  """Returns where `prompt_text` has the assistant's turns that are learnable.

  Each begins after its tag and ends before the separator.
  """
  spans = []
  for i, turn in enumerate(turns):
    if turn.role == "assistant" and turn.learnable:
      start = len(prompt_text(turns[:i], data))
      space = 1 if data.assistant_tag else 0
      spans.append((start, start + space + len(turn.text)))
  return spans


def completion_text(completion: str) -> str:
  """Returns a reply as the text that follows the bare assistant tag.

  A reply's single leading space is that text's space; more are an indent.
  """
  if completion.startswith(" ") and not completion.startswith("  "):
    return completion
  return " " + completion


def reply_text(decoded: str) -> str:
  """Returns the reply in a decoded response; inverts `completion_text`."""
  return decoded[1:] if decoded.startswith(" ") else decoded
