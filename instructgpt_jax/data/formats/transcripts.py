"""Transcripts: "\\n\\nHuman: …\\n\\nAssistant: …" as turns."""

from __future__ import annotations

import itertools
import re

from instructgpt_jax.data.records import Turn

Turns = tuple[Turn, ...]
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
# The tag of the user's turns in a transcript.
_USERS = ("Human", "User")


def _splitters(user_tag: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
  """Returns what splits a transcript with empty lines, and one without."""
  tag = rf"(?:{user_tag}|Assistant)"
  # The last "Assistant:" may follow a single newline.
  wide = rf"(?:^|\n\n)({tag}):[ ]?|\n(Assistant):\s*\Z"
  return re.compile(wide), re.compile(rf"(?:^|\n)({tag}):[ ]?")


_SPLITTERS = {tag: _splitters(tag) for tag in _USERS}
_STARTS = re.compile(r"\s*(?:Human|User|Assistant):")
_USER_TAG = re.compile(r"(?:\A\s*|\n)(Human|User):")
_WIDE_LEAD = re.compile(r"\n\n(Human|User):")
_NARROW_LEAD = re.compile(r"\n(Human|User):")


def transcript(text: str, lead: bool = False) -> Turns | None:
  """Returns the turns of "\\n\\nHuman: …\\n\\nAssistant: …", or None.

  The user's tag is "Human:" or "User:", and the same in the whole transcript.

  Args:
    text: what may be a transcript; single newlines between turns count where
      no tag follows an empty line.
    lead: whether a text ahead of the first "\\n\\nHuman:" is a system turn. One
      ahead of "\\n\\nUser:", or of a tag after a single newline, is one where
      "Assistant:" follows.
  """
  head, body = "", text.strip()
  if not _STARTS.match(body):
    start = _end_of_lead(body) if lead else 0
    if not start:
      return None
    head, body = body[:start].strip(), body[start:].strip()
  named = _USER_TAG.search(body)
  tag = named.group(1) if named else "Human"
  wide, narrow = _SPLITTERS[tag]
  turns: Turns = ()
  if f"\n\n{tag}:" in body or "\n\nAssistant:" in body:
    turns = _split(body, wide)
  if not turns or not _alternates(turns):
    others = _split(body, narrow)
    turns = others if not turns or _alternates(others) else turns
  return (Turn("system", head), *turns) if head else turns


def _end_of_lead(text: str) -> int:
  """Returns where the transcript begins after a system text, or 0."""
  for pattern in (_WIDE_LEAD, _NARROW_LEAD):
    tag = pattern.search(text)
    if tag and (
      (pattern is _WIDE_LEAD and tag.group(1) == "Human")
      or "\nAssistant:" in text[tag.end() :]
    ):
      return tag.start()
  return 0


def _split(text: str, pattern: re.Pattern[str]) -> Turns:
  """Splits a transcript that begins with a tag into its turns."""
  tags = list(pattern.finditer(text))
  ends = [tag.start() for tag in tags[1:]] + [len(text)]
  return tuple(
    Turn(_ROLES[tag[tag.lastindex or 1]], text[tag.end() : end].strip())
    for tag, end in zip(tags, ends, strict=True)
  )


def _alternates(turns: Turns) -> bool:
  """Returns whether no speaker has two turns in a row."""
  return all(a.role != b.role for a, b in itertools.pairwise(turns))


def of_prompt(text: str) -> Turns | None:
  """Returns the turns of a prompt up to the user's last one, or None.

  A text that quotes a conversation is no transcript: one with a text ahead that
  ends with a reply, or has single newlines and does not end with "Assistant:".
  """
  turns = transcript(text, lead=True)
  if not turns:
    return None
  if turns[-1] == Turn("assistant", ""):
    return turns[:-1]
  if not _STARTS.match(text) and (
    turns[-1].role != "user" or not _WIDE_LEAD.search(text)
  ):
    return None
  return turns
