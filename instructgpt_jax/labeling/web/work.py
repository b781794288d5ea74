"""Pages on which labelers work: the start page, items, drafts, own labels."""

from __future__ import annotations

import math
import re
from typing import Any

from starlette.responses import JSONResponse, Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, forms, labels
from instructgpt_jax.labeling.assignment import Work
from instructgpt_jax.labeling.web import item_page, queries
from instructgpt_jax.labeling.web.visit import Visit, redirect, whole_number

_TASK_TEXTS = {
  "ranking": "Order several answers to a prompt, and rate each of them.",
  "demonstration": "Write the answer that a helpful assistant gives.",
  "comparison": "Say which of two answers is better.",
  "screening": "A few items that show whether this work suits you.",
}
_PAGE = 50  # labels on a page


def home(visit: Visit) -> Response:
  """Shows the tasks of a labeler."""
  user = visit.signed_in
  if user.role == "owner":
    return redirect("/dashboard")
  with visit.store.read() as connection:
    used = queries.read_tasks(connection)
    count = queries.count_labels(connection, user.id)
    version = queries.current_version(connection)
  tasks = [
    (task, item_page.TASK_NAMES[task], _TASK_TEXTS[task])
    for task in assignment.TASKS_OF_ROLE[user.role]
    if task in used
  ]
  return visit.render(
    "home.html", tasks=tasks, count=count, instructions_version=version
  )


def next_work(visit: Visit) -> Response:
  """Opens the item that comes next."""
  task = visit.query("task") or None
  if task not in (None, *forms.TASKS):
    raise UserError(
      f"there is no task {task}", fix="return to the start", code="bad_task"
    )
  work = assignment.next_item(
    visit.store,
    visit.signed_in.id,
    visit.settings.rules,
    visit.now,
    task=task,
  )
  previous = visit.number("previous")
  if visit.accepts_json:
    return JSONResponse(_as_json(visit, work))
  if work is None:
    return visit.render("nothing_left.html", task=task, previous=previous)
  after = f"?previous={previous}" if previous else ""
  return redirect(f"/tasks/{work.assignment_id}{after}")


def show_work(visit: Visit) -> Response:
  """Shows an item of the labeler."""
  work = _get_work(visit)
  if visit.accepts_json:
    return JSONResponse(_as_json(visit, work))
  content = work.draft.content or work.label or {}
  return item_page.render(visit, work, content, {})


def save_draft(visit: Visit) -> Response:
  """Saves the draft, and counts active time."""
  work = _get_work(visit)
  content = _read_content(visit, work)
  try:
    draft = labels.save_draft(
      visit.store,
      _save(visit, work, content),
      visit.settings.rules,
      visit.now,
    )
  except labels.StaleDraft as error:
    return _stale(work, error)
  body: dict[str, Any] = {
    "revision": draft.revision,
    "has_place": draft.has_place,
  }
  count = visit.settings.count_tokens
  if count and item_page.shape_of(work) == "demonstration":
    texts = ((name, content.get(name)) for name in ("prompt", "answer"))
    body["tokens"] = {n: count(t) for n, t in texts if isinstance(t, str) and t}
  return JSONResponse(body)


def submit(visit: Visit) -> Response:
  """Submits a label, or a change of one."""
  work = _get_work(visit)
  content = _read_content(visit, work)
  try:
    valid = forms.validate(work.task, work.payload, content)
    _submit_valid(visit, work, valid)
  except forms.FormError as error:
    errors = error.errors
    if forms.has_order(work.task, work.payload):
      errors = item_page.displayed_errors(errors, work.display_order)
    if visit.accepts_json:
      body = {"error": error.problem, "errors": item_page.listed_errors(errors)}
      return JSONResponse(body, status_code=422)
    return item_page.render(visit, work, content, errors, 422)
  except labels.StaleDraft as error:
    if visit.accepts_json:
      return _stale(work, error)
    raise
  path = f"/tasks?task={work.task}&previous={work.assignment_id}"
  if work.state == "submitted":
    path = "/labels"
  if visit.accepts_json:
    return JSONResponse({"next": path})
  return redirect(path)


def _submit_valid(visit: Visit, work: Work, content: dict[str, Any]) -> None:
  with visit.store.read() as connection:
    newest = queries.current_version(connection)
  version = whole_number(str(visit.fields.get("instructions_version", "")))
  if not version or not newest or version > newest:
    version = newest
  labels.submit(
    visit.store,
    _save(visit, work, content),
    visit.settings.rules,
    visit.now,
    instructions_version=version,
  )


def skip(visit: Visit) -> Response:
  """Skips an item with a reason."""
  work = _get_work(visit)
  reason = visit.field("reason")
  assignment.skip(
    visit.store, visit.signed_in.id, work.assignment_id, reason, visit.now
  )
  path = f"/tasks?task={work.task}"
  return JSONResponse({"next": path}) if visit.accepts_json else redirect(path)


def undo_skip(visit: Visit) -> Response:
  """Opens a skipped item again."""
  return _reopened(visit, assignment.undo_skip)


def withdraw(visit: Visit) -> Response:
  """Takes a label back; its content becomes the draft."""
  return _reopened(visit, labels.withdraw)


def _reopened(visit: Visit, change: Any) -> Response:
  user, settings = visit.signed_in, visit.settings
  work = change(visit.store, user.id, visit.id(), settings.rules, visit.now)
  if visit.accepts_json:
    return JSONResponse(_as_json(visit, work))
  return redirect(f"/tasks/{work.assignment_id}")


def list_labels(visit: Visit) -> Response:
  """Shows a labeler's labels and drafts, newest first."""
  works = assignment.list_work(
    visit.store,
    visit.signed_in.id,
    visit.now,
    before=visit.number("before"),
    limit=_PAGE + 1,
  )
  return visit.render(
    "labels.html",
    works=works[:_PAGE],
    more=len(works) > _PAGE,
    task_names=item_page.TASK_NAMES,
    excerpt=queries.excerpt,
  )


def _get_work(visit: Visit) -> Work:
  return assignment.get_work(
    visit.store, visit.signed_in.id, visit.id(), visit.now
  )


def _as_json(visit: Visit, work: Work | None) -> dict[str, Any]:
  """Returns an item for programs; its completions are in order of display."""
  body: dict[str, Any] = {"assignment": None, "csrf": visit.csrf}
  if work is None:
    return body
  label = work.label
  body |= {
    "assignment": work.assignment_id,
    "task": work.task,
    "state": work.state,
    "closed": work.closed,
    "turns": work.payload.get("turns") or [],
    "completions": item_page.completions_of(work),
    "draft": item_page.to_displayed(work, work.draft.content) or None,
    "label": None if label is None else item_page.to_displayed(work, label),
    "revision": work.draft.revision,
    "has_place": work.draft.has_place,
  }
  if work.task == "screening":
    body["kind"] = work.payload["kind"]
    body["groups"] = forms.groups_of(work.payload)
  return body


def _read_content(visit: Visit, work: Work) -> dict[str, Any]:
  """Returns the form's content in stored order."""
  if visit.is_json:
    content = visit.fields.get("content")
    if not isinstance(content, dict):
      raise UserError(
        "content is not an object", fix="send the form", code="bad_content"
      )
  else:
    content = forms.parse(work.task, work.payload, visit.fields)
  return forms.to_stored(work.task, work.payload, content, work.display_order)


def _save(visit: Visit, work: Work, content: dict[str, Any]) -> labels.Save:
  return labels.Save(
    visit.signed_in.id,
    work.assignment_id,
    content,
    _revision(visit),
    _seconds(visit),
  )


def _revision(visit: Visit) -> int:
  value = visit.fields.get("revision")
  if isinstance(value, int) and not isinstance(value, bool):
    return value
  if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
    return int(value)
  raise UserError(
    "the draft's revision is missing", fix="reload the page", code="revision"
  )


def _seconds(visit: Visit) -> float:
  """Returns the active seconds that a page has counted."""
  try:
    value = float(visit.fields.get("seconds") or 0)
  except (TypeError, ValueError, OverflowError):
    return 0.0
  return value if math.isfinite(value) and value > 0 else 0.0


def _stale(work: Work, error: labels.StaleDraft) -> Response:
  body = {
    "error": "This page is older than what was saved from another one.",
    "code": "stale_draft",
    "draft": item_page.to_displayed(work, error.draft.content),
    "revision": error.draft.revision,
  }
  return JSONResponse(body, status_code=409)
