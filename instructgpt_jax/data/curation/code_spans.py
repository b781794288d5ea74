"""Finds the code in a text: fenced blocks, inline code and lines of code."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterator

_CODE_LINE = re.compile(
  r"""^[ \t]*(?:
    (?:(?:async|public|private|protected|static|export|abstract|final)[ ]){0,3}
      (?:def|class|module|struct|enum|trait|impl|interface|namespace|package|sub
      |func|fn|function|fun|defmodule|defp|defmacro|defimpl)
      [ ]+[A-Za-z_][\w.:!?]{0,80}[ ]*
      (?:[(<:{;].*|do|extends\b.*|implements\b.*)?$
    | (?:end|else|begin|ensure|rescue|try:|else:|fi|done|esac)[;,)]?[ \t]*$
    | (?:elif|elsif|except|catch|if|for|while|with|foreach|switch|unless)\b
      .{0,200}(?:[:{]|\bdo|\bthen)[ \t]*$
    | (?:from[ ]+[\w.]+[ ]+import\b|import[ ]+[\w.*{"'][^.!?]{0,200}$)
    | (?:export|require|require_once|include|using|use)\b[ (]+['"\w]
      [^ ]{0,100}$
    | (?:\#include|\#define|\#!/|//|/\*|<\?php|\\[a-zA-Z@]+[\[{@]|\\make)
    | (?:SELECT|INSERT[ ]INTO|UPDATE|DELETE[ ]FROM|DECLARE|CREATE|ALTER|EXEC)\b
    | (?:declare|set|select|exec)[ ]+@\w
    | [\w$@%.\[\]:*&<>'"]{1,60}(?:[ ][\w$@%.\[\]:*&<>'"]{1,60}){0,3}[ ]*
      (?:[-+*/|&.:%^]|\|\||&&)?=[ ]?(?![=\s])
    | [\w.:>$@-]{1,80}\([^()]{0,200}\)[;,]?[ \t]*$
    | @\w+[ ]+(?:[\w.]{1,60}\(|[\d"':\[{]|(?:public|private|protected|static
      |final|class|void|abstract|override|func|var|let|val|weak|interface|fun|int
      |double|float|boolean|bool|string)\b)
    | (?:my|our|local|push|unshift|splice|foreach|puts|print|say|return|echo)
      [ (]+[\\]?[@%$]\w
    | [$>][ ]\w
  )
  | ^\t@\w
  | [;{}][ \t]*$
  | [\w)\]]\(\) | \w->\w | [^-\s]?=>[ ] | \w::\w | [^=!<>]==[^=] | &&[ ]
  | \$[A-Za-z_]\w{0,60}[ ]*[;=)\[-] | </[A-Za-z] | =[ ]*@\w
  | [@$%]\w{1,60}[ ]*[\[{=] | \\@\w | @\w{1,60}\)[ ]*[;{]
  | ['"]@[\w-]{1,60}/
  | \b(?:do|begin)[ ]?(?:\|[\w, ]{0,60}\|)[ \t]*$""",
  re.VERBOSE,
)  # fmt: skip
_FENCE = re.compile(r"^[ \t]{0,8}(?:```|~~~)")
_INLINE = re.compile(r"(?<!`)`[^`\n]{1,200}`(?!`)")
_MAX_LINE = 2000
# What stands before an operand: x = |, f(|, return |, a + |.
_BEFORE_OPERAND = re.compile(
  r"(?:(?:^|[\w\])}\s])[+*/=@]=?|\breturn|\bassert|\w\()[ ]{0,4}\Z"
)
_CONTACT_WORD = re.compile(
  r"mail|user|author|contact|owner|admin|login|account|phone|mobile|cell|fax"
  r"|\btel|\bto\b|\bfrom\b|ssn|social|card|address",
  re.IGNORECASE,
)


class CodeSpans:
  """The parts of a text that are code.

  Code is what stands between fences (``` or ~~~) or backticks, and each run of
  lines without an empty line that has a line of code. An indented run after
  code belongs to it.
  """

  def __init__(self, text: str):
    self._blocks: list[tuple[int, float]] = []
    self._inline = [m.span() for m in _INLINE.finditer(text)]
    fenced = before = False
    for start, end, lines in _runs(text):
      continues = before and lines[0][:1] in (" ", "\t")
      has_fence = fenced
      for line in lines:
        if _FENCE.match(line):
          fenced = not fenced
          has_fence = True
      before = continues or has_fence or any(map(_is_code, lines))
      if before:
        self._blocks.append((start, end))

  def __contains__(self, index: int) -> bool:
    return _covers(self._blocks, index) or _covers(self._inline, index)


def is_operand(text: str, start: int) -> bool:
  """Reports whether code at an index is an operand, such as `b` in `y = a + b`.

  A value that is assigned to a name such as `email` or `phone` is no operand.
  """
  line = text[max(0, start - 80) : start].rpartition("\n")[2]
  return bool(_BEFORE_OPERAND.search(line)) and not _CONTACT_WORD.search(line)


def _covers(spans: list[tuple[int, float]], index: int) -> bool:
  position = bisect.bisect_right(spans, (index, math.inf)) - 1
  return position >= 0 and index < spans[position][1]


def _is_code(line: str) -> bool:
  return _CODE_LINE.search(line[:_MAX_LINE]) is not None


def _runs(text: str) -> Iterator[tuple[int, int, list[str]]]:
  """Yields (start, end, lines) of each run of lines that are not empty."""
  start, at, lines = 0, 0, []
  for line in text.split("\n"):
    if line.strip():
      start = start if lines else at
      lines.append(line)
    elif lines:
      yield start, at, lines
      lines = []
    at += len(line) + 1
  if lines:
    yield start, at, lines
