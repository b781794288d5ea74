"""Checks that docs/invariants.md links each invariant to its tests.

A test named `test_invariant_NN_…` covers invariant NN, so `pytest -k
invariant_14` runs all tests of number 14.
"""

import ast
import functools
import pathlib
import re

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs" / "invariants.md"
NAME = re.compile(r"test_invariant_(\d\d)_[a-z]")
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
LINK = re.compile(r"\]\(\.\./tests/([^)]+)\)")


@functools.cache
def _tests():
  """Returns (file, name) of all tests whose name mentions an invariant."""
  tests = []
  for path in sorted(TESTS.rglob("test_*.py")):
    text = path.read_text(encoding="utf-8")
    if path == pathlib.Path(__file__) or "invariant" not in text:
      continue
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef) and re.match(
        "test_.*invariant", node.name
      ):
        tests.append((path.relative_to(TESTS).as_posix(), node.name))
  return tests


def _rows():
  """Returns number → files that the page links."""
  text = PAGE.read_text(encoding="utf-8")
  return {
    int(number): set(LINK.findall(links))
    for number, _, links in ROW.findall(text)
  }


def test_the_page_lists_every_invariant():
  assert list(_rows()) == list(range(1, 31))


def test_test_names_have_a_known_number_in_two_digits():
  invalid = [
    name
    for _, name in _tests()
    if not (match := NAME.match(name)) or int(match[1]) not in _rows()
  ]
  assert invalid == []


def test_the_page_links_the_files_of_each_invariants_tests():
  files = {number: set() for number in _rows()}
  for file, name in _tests():
    match = NAME.match(name)
    assert match, name
    files[int(match[1])].add(file)
  assert files == _rows()
  assert all(files.values())
