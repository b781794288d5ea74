"""docs/data.md lists every field of every format, as the code has them."""

import pathlib

import pytest

from instructgpt_jax.data import formats
from instructgpt_jax.data.formats import common, registry, table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


def test_the_page_has_the_table():
  text = PAGE.read_text(encoding="utf-8")
  assert text.count(table.BEGIN) == text.count(table.END) == 1
  shown = text.split(table.BEGIN)[1].split(table.END)[0].strip()
  assert shown == table.markdown().strip(), (
    "update the table of docs/data.md:"
    " python -m instructgpt_jax.data.formats.table"
  )


def test_names_are_unique():
  names = [f.name for f in formats.FORMATS]
  assert len(set(names)) == len(names)


@pytest.mark.parametrize("known", formats.FORMATS, ids=lambda f: f.name)
def test_declarations(known):
  assert known.result
  assert not set(known.fields) & set(known.irrelevant)
  assert set(known.example) <= set(known.fields)
  if known.common is not None:
    assert set(known.common) <= set(common.FIELDS)
  # A field that a format reads itself is not read as a common one too.
  assert not registry.common_fields(known.name) & set(known.fields)
