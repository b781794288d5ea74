"""Content of forms as JSON: what a store can hold, and what is the same."""

from __future__ import annotations

import json
from typing import Any

from instructgpt_jax.errors import UserError

MAX_CONTENT = 1 << 20  # characters of JSON


def checked_content(content: Any) -> dict[str, Any]:
  """Returns content as the store has it; see `well_formed`.

  Raises:
    UserError: it is no JSON object, or too large ("bad_content").
  """
  try:
    if not isinstance(content, dict):
      problem = "is no JSON object"
    elif len(_as_text(content)) > MAX_CONTENT:
      problem = f"is longer than {MAX_CONTENT} characters"
    else:
      return well_formed(content)
  except (TypeError, ValueError, RecursionError) as error:
    problem = f"is no JSON: {error}"
  raise UserError(
    f"the content {problem}",
    fix="shorten the texts, or reload the page",
    code="bad_content",
  )


def well_formed(value: Any) -> Any:
  """Returns a JSON value whose lone surrogates are replaced.

  Browsers send them where an emoji was cut in half. No file or page can have
  them.
  """
  pairs = _as_text(value).encode("utf-16", "surrogatepass")
  return json.loads(pairs.decode("utf-16", "replace"))


def is_same(first: Any, second: Any) -> bool:
  """Returns whether two contents are equal as JSON; 1 and true are not."""
  return _canonical(first) == _canonical(second)


def _as_text(value: Any) -> str:
  return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _canonical(content: Any) -> str:
  return json.dumps(content, sort_keys=True)
