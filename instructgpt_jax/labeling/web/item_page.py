"""The page of an item: what it shows, and how errors name its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import forms
from instructgpt_jax.labeling.assignment import Work
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.visit import Visit

TASK_NAMES = {
  "ranking": "Rank answers",
  "demonstration": "Write a demonstration",
  "comparison": "Compare two answers",
  "screening": "Screening",
}
CONFIDENCE = {
  1: "A is far better",
  2: "A is much better",
  3: "A is better",
  4: "A is slightly better",
  5: "both are equal",
  6: "B is slightly better",
  7: "B is better",
  8: "B is much better",
  9: "B is far better",
}
_SUBMIT = ("Ctrl Enter", "Submit")
SHORTCUTS = {
  "ranking": (
    ("a b …", "Go to answer A, B …"),
    ("← →", "Go to the answer before or after"),
    ("1 2 …", "Give the focused answer this rank; equal ranks are ties"),
    ("↑ ↓", "Move the focused answer to a better or worse rank"),
    ("0", "Take the rank of the focused answer away"),
    ("Shift 1 … 7", "Rate the focused answer's overall quality"),
    ("Ctrl Z", "Undo the last change of a rank"),
    ("p", "Go to the prompt"),
    ("n", "Go to the notes"),
    ("Tab Space", "Go to the next field, and tick it"),
    _SUBMIT,
  ),
  "comparison": (
    ("1 … 9", "Choose how much better A or B is; 5 is equal"),
    ("a b", "Go to answer A or B"),
    ("n", "Go to the notes"),
    _SUBMIT,
  ),
}
# Labelers say of a ranking that they cannot judge it, which is a label.
_SKIPPABLE = ("demonstration", "comparison")
# Field of an answer; other fields are those that no form has.
_ANSWER_FIELD = re.compile("(rank|overall|flags|flag)-([0-9]{1,3})(.*)", re.S)


def render(
  visit: Visit,
  work: Work,
  content: Mapping[str, Any],
  errors: Mapping[str, str],
  status: int = 200,
) -> Response:
  """Returns the page of an item.

  Args:
    visit: the request.
    work: the item.
    content: content of the form, in stored order.
    errors: what is wrong, by field.
    status: HTTP status.
  """
  shape = shape_of(work)
  with visit.store.read() as connection:
    version = queries.current_version(connection)
  is_open = work.state == "open"
  return visit.render(
    f"{shape}.html",
    status,
    work=work,
    shape=shape,
    heading=_heading(work),
    errors=errors,
    error_names={field: name_of_field(field) for field in errors},
    can_edit=not work.closed and work.state != "skipped",
    can_skip=is_open and not work.closed and work.task in _SKIPPABLE,
    submit_name=_submit_name(work),
    previous=visit.number("previous"),
    instructions_version=version,
    shortcuts=SHORTCUTS.get(shape, (("Tab", "Go to the next field"), _SUBMIT)),
    **_form_values(work, to_displayed(work, content)),
  )


def completions_of(work: Work) -> list[str]:
  """Returns an item's texts in the order in which its page shows them."""
  if shape_of(work) == "sensitive":
    return forms.sensitive_texts(work.payload)
  texts = work.payload.get("completions") or []
  return [texts[i] for i in work.display_order]


def to_displayed(work: Work, content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns stored content in the order in which the page shows texts."""
  return forms.to_displayed(
    work.task, work.payload, content, work.display_order
  )


def shape_of(work: Work) -> str:
  """Returns the name of the form that an item needs."""
  return forms.shape_of(work.task, work.payload)


def displayed_errors(
  errors: Mapping[str, str], order: Sequence[int]
) -> dict[str, str]:
  """Returns errors with the places of completions instead of their indices.

  They are in the order of the places.
  """
  places = {index: i for i, index in enumerate(order)}

  def rename(field: str) -> tuple[int, str]:
    match = _ANSWER_FIELD.fullmatch(field)
    place = places.get(int(match[2])) if match else None
    if match is None or place is None:
      return len(places), field
    return place, f"{match[1]}-{place}{match[3]}"

  renamed = sorted(
    ((*rename(field), text) for field, text in errors.items()),
    key=lambda row: row[0],
  )
  return {field: text for _, field, text in renamed}


def name_of_field(field: str) -> str:
  """Returns what a message about a field begins with."""
  match = _ANSWER_FIELD.fullmatch(field)
  if match:
    return f"Answer {chr(ord('A') + int(match[2]))}: "
  names = {"question": "Query", "answer": "Response", "sensitive": "Text"}
  match = re.fullmatch("(question|answer|sensitive)-([0-9]{1,3})", field)
  return f"{names[match[1]]} {int(match[2]) + 1}: " if match else ""


def listed_errors(errors: Mapping[str, str]) -> list[dict[str, str]]:
  """Returns errors for a program, in order."""
  return [
    {"field": field, "label": name_of_field(field), "message": message}
    for field, message in errors.items()
  ]


def _heading(work: Work) -> str:
  headings = {
    "ranking": "Rank the answers",
    "demonstration": "Write a demonstration",
    "comparison": "Which answer is better?",
    "sensitive": "Sensitive speech",
    "groups": "Your own judgment",
  }
  if work.payload.get("turns") and shape_of(work) == "demonstration":
    return "Answer this prompt"
  return headings[shape_of(work)]


def _submit_name(work: Work) -> str:
  if work.closed or work.state == "skipped":
    return ""
  return "Save the change" if work.state == "submitted" else "Submit"


def _form_values(work: Work, content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a template shows in its fields; drafts may be incomplete."""
  texts = completions_of(work)

  def values(name: str) -> list[Any]:
    value = content.get(name)
    fits = isinstance(value, list) and len(value) == len(texts)
    return value if fits and value else [None] * len(texts)

  examples = content.get("examples")
  return {
    "content": {**forms.blank(), **content},
    "turns": work.payload.get("turns") or [],
    "use_case": work.payload.get("use_case") or "",
    "completions": texts,
    "ranks": values("ranks"),
    "overall": values("overall"),
    "flag_values": [v if isinstance(v, dict) else {} for v in values("flags")],
    "sensitive": values("sensitive"),
    "groups": forms.groups_of(work.payload),
    "chosen_groups": content["groups"]
    if isinstance(content.get("groups"), list)
    else [],
    "examples": [
      pair
      for pair in (examples if isinstance(examples, list) else [])
      if isinstance(pair, list) and len(pair) == 2
    ],
    "min_examples": forms.MIN_EXAMPLES,
    "max_examples": forms.MAX_EXAMPLES,
    "confidence_names": CONFIDENCE,
  }
