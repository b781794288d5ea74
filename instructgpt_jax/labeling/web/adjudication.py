"""Pages on which a reviewer decides items whose labels disagree.

They show labels of training labelers only: a final label is for training, and
must not be made from labels that judge what training does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import forms, labels, quality, snapshot
from instructgpt_jax.labeling.label_records import ranks_of_content
from instructgpt_jax.labeling.people import users
from instructgpt_jax.labeling.store import is_id
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.item_page import (
  CONFIDENCE,
  SHORTCUTS,
  displayed_errors,
  name_of_field,
)
from instructgpt_jax.labeling.web.visit import Visit, not_found, redirect

_ITEMS = 100
_TASKS = ("ranking", "comparison")


def show_list(visit: Visit) -> Response:
  """Shows the items with the most disagreement first."""
  with visit.store.read() as connection:
    content = snapshot.read_snapshot(connection)
  records = [r for r in snapshot.records_of(content) if not r.held_out]
  items = {item.id: item for item in content.items}
  final = {adjudication.item.id for adjudication in content.adjudications}
  rows = [
    row
    for row in quality.disagreement(quality.compare_labels(records))
    if items[row.item_id].task in _TASKS
  ]
  rows.sort(key=lambda row: row.item_id in final)
  return visit.render(
    "adjudication_list.html",
    rows=[
      (r, queries.excerpt(items[r.item_id].payload), r.item_id in final)
      for r in rows[:_ITEMS]
    ],
    count=len(rows),
    done=sum(row.item_id in final for row in rows),
  )


def show_item(visit: Visit) -> Response:
  """Shows an item, its labels, and the form of the final label."""
  item = _get_item(visit)
  final = labels.get_adjudication(visit.store, item.id)
  content = final.content if final else {}
  return _page(visit, item, content, {}, _decided_at(visit, item))


def decide(visit: Visit) -> Response:
  """Stores the final label."""
  item = _get_item(visit)
  order = _order(item)
  content = forms.to_stored(
    item.task,
    item.payload,
    forms.parse(item.task, item.payload, visit.fields),
    order,
  )
  try:
    valid = forms.validate(item.task, item.payload, content)
  except forms.FormError as error:
    errors = displayed_errors(error.errors, order)
    return _page(visit, item, content, errors, visit.field("decided_at"), 422)
  try:
    labels.adjudicate(
      visit.store,
      visit.signed_in.id,
      item.id,
      valid,
      visit.now,
      replaces=_number(visit.field("decided_at")),
    )
  except UserError as error:
    if error.code != "already_decided":
      raise
    problem = "Another final label was saved since. Save again to replace it."
    decided_at = _decided_at(visit, item)
    return _page(visit, item, valid, {"work": problem}, decided_at, 409)
  return redirect("/adjudication")


def _decided_at(visit: Visit, item: Any) -> str:
  """Returns the time of an item's final label for its page; "" for none."""
  final = labels.get_adjudication(visit.store, item.id)
  return repr(final.at) if final else ""


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _get_item(visit: Visit) -> Any:
  item_id = visit.id()
  with visit.store.read() as connection:
    item = queries.get_item(connection, item_id) if is_id(item_id) else None
  if item is None or item.task not in _TASKS:
    raise not_found()
  return item


def _order(item: Any) -> list[int]:
  """Returns the order of display, which is the same for all reviewers."""
  order = list(range(len(item.payload["completions"])))
  random.Random(item.id).shuffle(order)
  return order


def _page(
  visit: Visit,
  item: Any,
  content: Mapping[str, Any],
  errors: Mapping[str, str],
  decided_at: str,
  status: int = 200,
) -> Response:
  order = _order(item)
  texts = item.payload["completions"]
  training = {
    user.id: user.name
    for user in users.list_users(visit.store)
    if not user.held_out and user.role != "candidate"
  }
  shown = forms.to_displayed(item.task, item.payload, content, order)
  blank = [None] * len(texts)
  return visit.render(
    "adjudication.html",
    status,
    item=item,
    shape=item.task,
    decided_at=decided_at,
    turns=item.payload.get("turns") or [],
    completions=[texts[i] for i in order],
    labels=[
      _label_row(training[label.user_id], item, label.content, order)
      for label in labels.labels_of_item(visit.store, item.id)
      if label.user_id in training
    ],
    content={**forms.blank(), **shown},
    ranks=shown.get("ranks") or blank,
    overall=shown.get("overall") or blank,
    flag_values=shown.get("flags") or [{}] * len(texts),
    errors=errors,
    error_names={field: name_of_field(field) for field in errors},
    confidence_names=CONFIDENCE,
    submit_name="Save the final label",
    shortcuts=SHORTCUTS[item.task],
  )


def _label_row(
  name: str, item: Any, content: Mapping[str, Any], order: list[int]
) -> dict[str, Any]:
  """Returns a label for the table of an item's labels."""
  ranks = ranks_of_content(item.task, content)
  shown = forms.to_displayed(item.task, item.payload, content, order)
  return {
    "name": name,
    "ranks": [ranks[i] for i in order] if ranks else [],
    "confidence": shown.get("confidence"),
    "notes": content.get("notes", ""),
    "cannot_judge": content.get("cannot_judge"),
  }
