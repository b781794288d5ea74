"""The owner's pages of items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import forms, labels
from instructgpt_jax.labeling.people import users
from instructgpt_jax.labeling.store import is_id
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.item_page import TASK_NAMES
from instructgpt_jax.labeling.web.visit import Visit, not_found, redirect

_PAGE = 50  # items


def show_list(visit: Visit) -> Response:
  """Shows items, with their numbers of labels."""
  task, state = visit.query("task"), visit.query("state")
  with visit.store.read() as connection:
    rows = queries.list_items(
      connection,
      task=task if task in forms.TASKS else "",
      state=state if state in ("open", "closed") else "",
      after=visit.number("after") or 0,
      limit=_PAGE + 1,
    )
    progress = queries.item_progress(connection)
  return visit.render(
    "items.html",
    items=rows[:_PAGE],
    more=len(rows) > _PAGE,
    progress=progress,
    task=task,
    state=state,
    task_names=TASK_NAMES,
  )


def show_item(visit: Visit) -> Response:
  """Shows an item with its labels; where its answers come from is not shown."""
  item_id = visit.id()
  with visit.store.read() as connection:
    item = queries.get_item(connection, item_id) if is_id(item_id) else None
    if item is None:
      raise not_found()
    skipped = queries.skip_reasons(connection, item_id)
  item_labels = labels.labels_of_item(visit.store, item_id)
  # Read last, so that it has the labelers of all labels.
  names = {user.id: user.name for user in users.list_users(visit.store)}
  payload = item.payload
  is_ranking = forms.shape_of(item.task, payload) == "ranking"
  return visit.render(
    "item.html",
    item=item,
    turns=payload.get("turns") or [],
    texts=_texts(payload),
    labels=[
      (names[label.user_id], label, {**forms.blank(), **label.content})
      for label in item_labels
    ],
    skipped=skipped,
    is_ranking=is_ranking,
    task_names=TASK_NAMES,
  )


def _texts(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the (name, text) of each answer, or text to screen."""
  answers = payload.get("completions") or []
  texts = payload.get("texts") or []
  return [
    *((f"Answer {chr(ord('A') + i)}", text) for i, text in enumerate(answers)),
    *((f"Text {i}", text) for i, text in enumerate(texts, 1)),
  ]


def close(visit: Visit) -> Response:
  """Ends work on an item."""
  labels.close_item(visit.store, visit.id(), visit.now)
  return _changed(visit)


def reopen(visit: Visit) -> Response:
  """Allows work on an item again."""
  labels.reopen_item(visit.store, visit.id())
  return _changed(visit)


def _changed(visit: Visit) -> Response:
  """Returns the row of the list for HTMX, else the item's page."""
  if "hx-request" not in visit.request.headers:
    return redirect(f"/items/{visit.id()}")
  with visit.store.read() as connection:
    rows = queries.list_items(connection, after=visit.id() - 1, limit=1)
  return visit.render("item_row.html", item=rows[0], task_names=TASK_NAMES)


def close_full(visit: Visit) -> Response:
  """Closes the items that have all their labels."""
  labels.close_full_items(visit.store, visit.now)
  return redirect("/items")
