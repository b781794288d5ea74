"""Every user error has a stable code."""

import ast
import pathlib

import pytest

from instructgpt_jax import errors

ROOT = pathlib.Path(__file__).parents[1]
TOPS = ("instructgpt_jax", "experiments", "benchmarks")


def without_code(tree):
  """Yields the lines of user errors that are made without a code."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func).rpartition(".")[2]
    names = {keyword.arg for keyword in node.keywords}
    if name == "UserError" and not names & {"code", None}:
      yield node.lineno


@pytest.mark.parametrize("top", TOPS)
def test_every_user_error_has_a_code(top):
  bad = [
    f"{path.relative_to(ROOT)}:{line}"
    for path in sorted((ROOT / top).rglob("*.py"))
    for line in without_code(ast.parse(path.read_text(encoding="utf-8")))
  ]
  assert bad == []


def test_a_missing_code_is_noticed():
  text = "errors.UserError('x', fix='y')\nUserError('x', code='z')\nf(1)"
  assert list(without_code(ast.parse(text))) == [1]


def test_only_the_given_field_gets_another_name():
  first = errors.UserError(
    "is bad", file="f", line=3, field="data.a", fix="set --data.a", code="bad"
  )
  with pytest.raises(errors.UserError) as caught:
    with errors.naming_fields({"data.a": "stage.a"}):
      raise first
  assert str(caught.value) == "f:3 [stage.a]: is bad\n  fix: set --stage.a"
  assert caught.value.code == "bad" and caught.value.__cause__ is first
  for field in ("data.b", "data.a.b", "data.ab", "my.data.a", None):
    other = errors.UserError("is bad", field=field, code="bad")
    with pytest.raises(errors.UserError) as caught:
      with errors.naming_fields({"data.a": "stage.a"}):
        raise other
    assert caught.value is other


def test_the_fields_of_a_section_get_another_name():
  fix = "leave out --reward.a, reward.jsonl or my-reward.v2. --data.a.b=1"
  with pytest.raises(errors.UserError) as caught:
    with errors.naming_fields({"reward.": "stage.", "data.a": "public"}):
      raise errors.UserError("is bad", field="reward.a", fix=fix, code="bad")
  assert caught.value.field == "stage.a"
  assert caught.value.fix == fix.replace("--reward.a", "--stage.a")
