#!/usr/bin/env python3
"""Fails on words that this project's style avoids, in prose and in names.

  python .ci/check_words.py [PATH...]

Prose is Markdown, docstrings, comments and other strings; code in backticks is
skipped. Names are variables, parameters, functions, classes and attributes that
Python files bind. CONTRIBUTING.md explains the style.
"""

from __future__ import annotations

import ast
import io
import json
import pathlib
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Word or phrase -> what to write.
PROSE = {
  r"anew": "again, or: recompute",
  r"so many": "name the number",
  r"stand(?:s|ing)? in (?:a|the|its|their|place)": "is in",
  r"stands? in for": "replaces",
  r"go(?:es|ing)? on (?:from|where|with|until|after)": "resume, continue",
  r"of which": "name the thing",
  r"be they": "whether",
  r"(?:is|are|was|were) wanted": "target, or: is needed",
  r"wanted (?:of|were|was)": "target",
  r"dear(?:er|est)?": "expensive",
  r"given back": "returned",
  r"(?:is|are|was|were) told": "is informed, or: prints",
  r"told (?:of|to)": "informs",
  r"who only": "name the program",
  r"happens? to be": "is",
  r"by and by": "gradually",
  r"at an hour": "leave it out",
  r"remed(?:y|ies)": "fix",
  r"mistakes? of the user'?s?": "user error",
  r"the user'?s mistakes?": "user error",
  r"computed anew": "recomputed",
  r"folders?": "directory",
  r"drawn anew": "sampled again",
  r"sums? round otherwise": "rounding differs in the last bits",
  r"as they are, be": "whether",
}
NAMES = frozenset(
  "found held given wanted kept said seen told own some anew dear".split()
)
_PROSE = re.compile(
  r"\b(?:" + "|".join(f"(?P<w{i}>{p})" for i, p in enumerate(PROSE)) + r")\b",
  re.IGNORECASE,
)
_ADVICE = list(PROSE.values())
_CODE = re.compile(r"```.*?```|``.*?``|`[^`\n]*`", re.DOTALL)
_INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
# Files whose words are not ours to choose, or that define the list.
SKIPPED = {".ci/check_words.py", "LICENSE"}
# Data of the embedded world, whose words are its vocabulary.
DATA = re.compile(r"^instructgpt_jax/world/")
_KEEP = "style: word"  # in a comment: the word is part of another format


def _blank(match: re.Match[str]) -> str:
  return re.sub(r"[^\n]", " ", match.group())


def _prose(text: str, first: int, file: str) -> Iterator[tuple[int, str, str]]:
  text = _CODE.sub(_blank, text)
  for match in _PROSE.finditer(text):
    line = first + text.count("\n", 0, match.start())
    group = next(k for k, v in match.groupdict().items() if v)
    yield line, match.group(), _ADVICE[int(group[1:])]


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
  """Yields the names that a module binds."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.lineno, node.id
    elif isinstance(node, ast.arg):
      yield node.lineno, node.arg
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield node.lineno, node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
      yield node.lineno, node.attr


def check_python(text: str, file: str) -> Iterator[tuple[int, str, str]]:
  """Yields (line, word, advice) for each banned word of a Python file."""
  lines = text.splitlines()
  for line, name in _names(ast.parse(text)):
    if name.lstrip("_") in NAMES:
      yield line, name, "name the value for what it is"
  if DATA.match(file):
    kinds = {tokenize.COMMENT}
  else:
    kinds = {tokenize.COMMENT, tokenize.STRING}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type in kinds and _KEEP not in lines[token.start[0] - 1]:
      yield from _prose(token.string, token.start[0], file)


def check_markdown(text: str, file: str) -> Iterator[tuple[int, str, str]]:
  """Yields (line, word, advice) for each banned word of a page."""
  yield from _prose(_INDENTED.sub(_blank, text), 1, file)


def check_notebook(text: str, file: str) -> Iterator[tuple[int, str, str]]:
  """Yields (cell, word, advice) for each banned word of a notebook."""
  for number, cell in enumerate(json.loads(text)["cells"], 1):
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
      words = check_markdown(source, file)
    else:
      words = check_python(re.sub(r"^[%!].*$", "", source, flags=re.M), file)
    for _, word, advice in words:
      yield number, word, advice


CHECKS = {
  ".py": check_python,
  ".md": check_markdown,
  ".ipynb": check_notebook,
}


def main(arguments: list[str]) -> int:
  """Prints each banned word of the files, and returns whether there are any."""
  paths = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    + ["--", *arguments],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  ).stdout.splitlines()
  count = 0
  for name in paths:
    path = ROOT / name
    check = CHECKS.get(path.suffix)
    if check is None or name in SKIPPED or not path.is_file():
      continue
    for line, word, advice in check(path.read_text(encoding="utf-8"), name):
      print(f"{name}:{line}: {word!r} (write: {advice})")
      count += 1
  if count:
    print(f"{count} words that the style avoids; see CONTRIBUTING.md")
  return int(count > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
