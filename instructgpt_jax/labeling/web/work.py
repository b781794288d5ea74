"""Pages on which labelers work: the start page, items, drafts, own labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, forms, labels
from instructgpt_jax.labeling.assignment import Work
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.visit import Visit, redirect

TASK_NAMES = {
  "ranking": "Rank answers",
  "demonstration": "Write a demonstration",
  "comparison": "Compare two answers",
  "screening": "Screening",
}
_TASK_TEXTS = {
  "ranking": "Order several answers to a prompt, and rate each of them.",
  "demonstration": "Write the answer that a helpful assistant gives.",
  "comparison": "Say which of two answers is better.",
  "screening": "A few items that show whether this work suits you.",
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
_PAGE = 50  # labels on a page
# Field of an answer; other fields are those that no form has.
_ANSWER_FIELD = re.compile("(rank|overall|flags|flag)-([0-9]{1,3})(.*)", re.S)
# Labelers say of a ranking that they cannot judge it, which is a label.
_SKIPPABLE = ("demonstration", "comparison")


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
    (task, TASK_NAMES[task], _TASK_TEXTS[task])
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
  previous = _number(visit.query("previous"))
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
  return _page(visit, work, content, {})


def save_draft(visit: Visit) -> Response:
  """Saves the draft, and counts active time."""
  work = _get_work(visit)
  content = _read_content(visit, work)
  try:
    draft = labels.save_draft(
      visit.store,
      visit.signed_in.id,
      work.assignment_id,
      content,
      _revision(visit),
      visit.settings.rules,
      visit.now,
      active_seconds=_seconds(visit),
    )
  except labels.StaleDraft as error:
    return _stale(work, error)
  body: dict[str, Any] = {
    "revision": draft.revision,
    "has_place": draft.has_place,
  }
  count = visit.settings.count_tokens
  if count and _shape(work) == "demonstration":
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
      errors = displayed_errors(errors, work.display_order)
    if visit.accepts_json:
      body = {"error": error.problem, "errors": _listed(errors)}
      return JSONResponse(body, status_code=422)
    return _page(visit, work, content, errors, 422)
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
  version = _number(str(visit.fields.get("instructions_version", "")))
  if not version or not newest or version > newest:
    version = newest
  labels.submit(
    visit.store,
    visit.signed_in.id,
    work.assignment_id,
    content,
    _revision(visit),
    visit.settings.rules,
    visit.now,
    instructions_version=version,
    active_seconds=_seconds(visit),
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
    before=_number(visit.query("before")),
    limit=_PAGE + 1,
  )
  return visit.render(
    "labels.html",
    works=works[:_PAGE],
    more=len(works) > _PAGE,
    task_names=TASK_NAMES,
    excerpt=queries.excerpt,
  )


def _get_work(visit: Visit) -> Work:
  return assignment.get_work(
    visit.store, visit.signed_in.id, visit.id(), visit.now
  )


def _shape(work: Work) -> str:
  return forms.shape_of(work.task, work.payload)


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
    "completions": _completions(work),
    "draft": _to_displayed(work, work.draft.content) or None,
    "label": None if label is None else _to_displayed(work, label),
    "revision": work.draft.revision,
    "has_place": work.draft.has_place,
  }
  if work.task == "screening":
    body["kind"] = work.payload["kind"]
    body["groups"] = forms.groups_of(work.payload)
  return body


def _completions(work: Work) -> list[str]:
  if _shape(work) == "sensitive":
    return forms.sensitive_texts(work.payload)
  texts = work.payload.get("completions") or []
  return [texts[i] for i in work.display_order]


def _to_displayed(work: Work, content: Mapping[str, Any]) -> dict[str, Any]:
  return forms.to_displayed(
    work.task, work.payload, content, work.display_order
  )


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


def _number(text: str) -> int | None:
  return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _stale(work: Work, error: labels.StaleDraft) -> Response:
  body = {
    "error": "This page is older than what was saved from another one.",
    "code": "stale_draft",
    "draft": _to_displayed(work, error.draft.content),
    "revision": error.draft.revision,
  }
  return JSONResponse(body, status_code=409)


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


def _listed(errors: Mapping[str, str]) -> list[dict[str, str]]:
  return [
    {"field": field, "label": name_of_field(field), "message": message}
    for field, message in errors.items()
  ]


def _page(
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
  shape = _shape(work)
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
    previous=_number(visit.query("previous")),
    instructions_version=version,
    shortcuts=SHORTCUTS.get(shape, (("Tab", "Go to the next field"), _SUBMIT)),
    **_form_values(work, _to_displayed(work, content)),
  )


def _heading(work: Work) -> str:
  headings = {
    "ranking": "Rank the answers",
    "demonstration": "Write a demonstration",
    "comparison": "Which answer is better?",
    "sensitive": "Sensitive speech",
    "groups": "Your own judgment",
  }
  if work.payload.get("turns") and _shape(work) == "demonstration":
    return "Answer this prompt"
  return headings[_shape(work)]


def _submit_name(work: Work) -> str:
  if work.closed or work.state == "skipped":
    return ""
  return "Save the change" if work.state == "submitted" else "Submit"


def _form_values(work: Work, content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a template shows in its fields; drafts may be incomplete."""
  texts = _completions(work)

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
