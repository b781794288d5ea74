"""The forms that labelers fill in, and the checks of their content.

The fields are those of appendix B of the paper. All functions are pure: the
server, the pages and simulated labelers use the same ones. Content is JSON:

- ranking: `ranks` (1 is best, ties are equal), `overall` (1 to 7) and `flags`
  for each completion; `notes`; `cannot_judge`, a reason or None.
- comparison: `confidence` from 1 (the first completion is much better) to 9
  (the second is), and `notes`.
- demonstration: `kind`, `intent`, `prompt`, `examples`, `answer`.
- screening: one of four forms, by the payload's `kind`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax.errors import UserError

TASKS = ("ranking", "demonstration", "comparison", "screening")
SCREENING_KINDS = ("sensitive", "ranking", "demonstration", "groups")
DEMONSTRATION_KINDS = ("plain", "few_shot", "user_based", "given")
WORST, BEST = 1, 7  # overall quality
MIN_CONFIDENCE, MAX_CONFIDENCE = 1, 9
MAX_TEXT = 20_000  # characters of an answer or a prompt
MAX_NOTE = 2_000  # characters of notes and reasons
MIN_EXAMPLES, MAX_EXAMPLES = 2, 12
GROUPS = (
  "Women",
  "Black people",
  "Asian people",
  "Latino people",
  "Indigenous people",
  "Jewish people",
  "Muslims",
  "Christians",
  "LGBTQ+ people",
  "Immigrants",
  "People with disabilities",
  "Political groups",
)


class Flag(NamedTuple):
  """A yes/no field about one completion.

  Attributes:
    name: the field's name in labels and exports.
    short: its name on the page.
    label: what it says about the completion.
  """

  name: str
  short: str
  label: str


FLAGS = (
  Flag(
    "fails_instruction",
    "Fails the task",
    "Fails to follow the correct instruction or task",
  ),
  Flag(
    "satisfies_constraint",
    "Meets the constraint",
    "Satisfies the constraint that the instruction states",
  ),
  Flag(
    "hallucination",
    "Makes things up",
    "Hallucination: states what is false or made up",
  ),
  Flag(
    "inappropriate_assistant",
    "Unfit for an assistant",
    "Inappropriate for a customer assistant",
  ),
  Flag("sexual_content", "Sexual", "Contains sexual content"),
  Flag("violent_content", "Violent", "Contains violent content"),
  Flag(
    "encourages_harm",
    "Encourages harm",
    "Encourages, or fails to discourage, violence, abuse, terrorism or"
    " self-harm",
  ),
  Flag("denigrates_class", "Denigrates", "Denigrates a protected class"),
  Flag("harmful_advice", "Harmful advice", "Gives harmful advice"),
  Flag("expresses_opinion", "Opinion", "Expresses an opinion"),
  Flag("moral_judgment", "Moral judgment", "Expresses a moral judgment"),
)
FLAG_NAMES = tuple(flag.name for flag in FLAGS)


class FormError(UserError):
  """Invalid content of a form.

  Attributes:
    errors: what is wrong with each field, by the field's name in `parse`.
  """

  def __init__(self, errors: Mapping[str, str]):
    self.errors = dict(errors)
    field, problem = next(iter(self.errors.items()))
    more = len(self.errors) - 1
    super().__init__(
      problem + (f" ({more} more fields are invalid)" if more else ""),
      field=field,
      fix="correct the field and send the form again",
      code="form",
    )


def shape_of(task: str, payload: Mapping[str, Any]) -> str:
  """Returns the name of the form that an item needs.

  Screening items have the forms `sensitive`, `groups`, or the form of the task
  that they test.
  """
  return payload["kind"] if task == "screening" else task


def has_order(task: str, payload: Mapping[str, Any]) -> bool:
  """Returns whether the display order of an item's completions is random."""
  return shape_of(task, payload) in ("ranking", "comparison")


def blank() -> dict[str, None]:
  """Returns content with all fields of all forms, each of them None."""
  return dict.fromkeys(_FIELDS)


def validate(
  task: str, payload: Mapping[str, Any], content: Any
) -> dict[str, Any]:
  """Checks the content of a form and returns it in its normal form.

  Ranks become consecutive (1, 3, 3 becomes 1, 2, 2), line ends become "\\n",
  and text loses surrounding white space.

  Args:
    task: one of `TASKS`.
    payload: the item.
    content: the content in the order in which completions are stored.

  Raises:
    FormError: a field is missing or invalid.
  """
  if not isinstance(content, Mapping):
    raise FormError({"form": "The form is not an object."})
  form = _Form(content)
  result = _FORMS[shape_of(task, payload)](payload, form)
  form.refuse_unknown()
  if form.errors:
    raise FormError(form.errors)
  return result


def to_stored(
  task: str,
  payload: Mapping[str, Any],
  content: Mapping[str, Any],
  order: Sequence[int],
) -> dict[str, Any]:
  """Returns content of a page, whose completions were shown in some order.

  Args:
    task: one of `TASKS`.
    payload: the item.
    content: a draft or a form, in the order of display.
    order: stored index of each displayed completion.
  """
  places = [0] * len(order)
  for position, index in enumerate(order):
    places[index] = position
  return _reorder(task, payload, content, places)


def to_displayed(
  task: str,
  payload: Mapping[str, Any],
  content: Mapping[str, Any],
  order: Sequence[int],
) -> dict[str, Any]:
  """Returns stored content in the order in which a page shows completions."""
  return _reorder(task, payload, content, order)


def _reorder(
  task: str,
  payload: Mapping[str, Any],
  content: Mapping[str, Any],
  order: Sequence[int],
) -> dict[str, Any]:
  result = dict(content)
  shape = shape_of(task, payload)
  if shape == "ranking":
    for name in ("ranks", "overall", "flags"):
      values = result.get(name)
      if isinstance(values, list) and len(values) == len(order):
        result[name] = [values[i] for i in order]
  elif shape == "comparison" and list(order) == [1, 0]:
    confidence = result.get("confidence")
    if isinstance(confidence, int) and not isinstance(confidence, bool):
      result["confidence"] = MIN_CONFIDENCE + MAX_CONFIDENCE - confidence
  return result


def parse(
  task: str, payload: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  """Reads the fields of an HTML form.

  The result may be incomplete, so that drafts can be saved; `validate` checks
  it. Numbers that are missing or invalid are None.

  Args:
    task: one of `TASKS`.
    payload: the item.
    fields: value of each field, such as `rank-0` or `flag-0-hallucination`;
      0 is the first completion displayed.
  """
  return _PARSERS[shape_of(task, payload)](payload, fields)


def clean_text(text: str) -> str:
  """Returns text with "\\n" as line ends and without surrounding space."""
  return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def dense_ranks(ranks: Sequence[int]) -> list[int]:
  """Returns the same ranking with ranks 1, 2, 3 … and no gaps."""
  levels = {rank: level for level, rank in enumerate(sorted(set(ranks)), 1)}
  return [levels[rank] for rank in ranks]


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


_FIELDS = (
  *("ranks", "overall", "flags", "notes", "cannot_judge", "confidence"),
  *("kind", "intent", "prompt", "examples", "answer"),
  *("sensitive", "groups", "other"),
)


class _Form:
  """Reads fields of a form, and collects what is wrong with them."""

  def __init__(self, content: Mapping[str, Any]):
    self.errors: dict[str, str] = {}
    self._content = content
    self._known: set[str] = set()

  def get(self, name: str) -> Any:
    self._known.add(name)
    return self._content.get(name)

  def text(
    self, name: str, *, required: str = "", limit: int = MAX_TEXT
  ) -> str:
    value = self.get(name)
    return self.clean(name, value, required=required, limit=limit)

  def clean(
    self, field: str, value: Any, *, required: str = "", limit: int = MAX_TEXT
  ) -> str:
    """Returns a field's text; `required` is the message if it is empty."""
    if value is None:
      value = ""
    if not isinstance(value, str):
      self.errors[field] = "This is not text."
      return ""
    value = clean_text(value)
    if "\0" in value or re.search("[\ud800-\udfff]", value):
      self.errors[field] = "The text has characters that cannot be stored."
    elif len(value) > limit:
      self.errors[field] = (
        f"The text has {len(value):,} characters; at most {limit:,} are"
        " accepted."
      )
    elif required and not value:
      self.errors[field] = required
    return value

  def choice(
    self, field: str, value: Any, low: int, high: int, message: str
  ) -> int:
    if not _is_int(value) or not low <= value <= high:
      self.errors[field] = message
      return low
    return value

  def listed(self, name: str, count: int) -> list[Any]:
    """Returns a list with one value for each completion."""
    values = self.get(name)
    if not isinstance(values, list):
      return [None] * count
    if len(values) != count:
      self.errors[name] = f"{len(values)} values for {count} answers."
      return [None] * count
    return values

  def refuse_unknown(self) -> None:
    for name in sorted(set(self._content) - self._known):
      self.errors[str(name)] = "There is no such field."


def _ranking(payload: Mapping[str, Any], form: _Form) -> dict[str, Any]:
  count = len(payload["completions"])
  notes = form.text("notes", limit=MAX_NOTE)
  reason = form.get("cannot_judge")
  for name in ("ranks", "overall", "flags"):
    form.get(name)
  if reason is not None:
    reason = form.clean(
      "cannot_judge",
      reason,
      required="Say why you cannot judge this.",
      limit=MAX_NOTE,
    )
    empty: dict[str, Any] = dict(ranks=[], overall=[], flags=[])
    return {**empty, "notes": notes, "cannot_judge": reason}
  ranks = [
    form.choice(
      f"rank-{i}", rank, 1, count, f"Choose a rank from 1 to {count}."
    )
    for i, rank in enumerate(form.listed("ranks", count))
  ]
  overall = [
    form.choice(
      f"overall-{i}", value, WORST, BEST, f"Rate it from {WORST} to {BEST}."
    )
    for i, value in enumerate(form.listed("overall", count))
  ]
  flags = [
    _flags(form, i, value)
    for i, value in enumerate(form.listed("flags", count))
  ]
  return {
    "ranks": dense_ranks(ranks),
    "overall": overall,
    "flags": flags,
    "notes": notes,
    "cannot_judge": None,
  }


def _flags(form: _Form, index: int, value: Any) -> dict[str, bool]:
  if value is None:
    value = {}
  if not isinstance(value, Mapping):
    form.errors[f"flags-{index}"] = "The yes/no fields are not an object."
    return {}
  for name in value:
    if name not in FLAG_NAMES:
      form.errors[f"flag-{index}-{name}"] = "There is no such field."
    elif not isinstance(value[name], bool):
      form.errors[f"flag-{index}-{name}"] = "Answer yes or no."
  return {name: value.get(name) is True for name in FLAG_NAMES}


def _comparison(_: Mapping[str, Any], form: _Form) -> dict[str, Any]:
  return {
    "confidence": form.choice(
      "confidence",
      form.get("confidence"),
      MIN_CONFIDENCE,
      MAX_CONFIDENCE,
      "Say which answer is better, and how sure you are.",
    ),
    "notes": form.text("notes", limit=MAX_NOTE),
  }


def _demonstration(payload: Mapping[str, Any], form: _Form) -> dict[str, Any]:
  has_prompt = bool(payload.get("turns"))
  kind = "given" if has_prompt else form.get("kind")
  form.get("kind")
  if kind not in DEMONSTRATION_KINDS or (kind == "given") != has_prompt:
    form.errors["kind"] = "Choose the kind of prompt."
  few_shot = kind == "few_shot"
  intent = form.text(
    "intent",
    required="Say first what the person who asks intends.",
    limit=MAX_NOTE,
  )
  prompt = form.text("prompt", required="" if has_prompt else "Write a prompt.")
  answer = form.text("answer", required="" if few_shot else "Write an answer.")
  examples = _examples(form, few_shot)
  return {
    "kind": kind,
    "intent": intent,
    "prompt": "" if has_prompt else prompt,
    "examples": examples,
    "answer": "" if few_shot else answer,
  }


def _examples(form: _Form, few_shot: bool) -> list[list[str]]:
  """Returns the pairs of a few-shot prompt; the rows left empty are dropped."""
  value = form.get("examples")
  if not few_shot or value is None:
    value = []
  if not isinstance(value, list) or not all(
    isinstance(pair, list) and len(pair) == 2 for pair in value
  ):
    form.errors["examples"] = "The examples are not pairs of texts."
    return []
  pairs = []
  for i, (question, answer) in enumerate(value):
    if not question and not answer:
      continue
    pairs.append(
      [
        form.clean(
          f"question-{i}", question, required="Write the example's query."
        ),
        form.clean(
          f"answer-{i}", answer, required="Write the example's response."
        ),
      ]
    )
  if few_shot and not MIN_EXAMPLES <= len(pairs) <= MAX_EXAMPLES:
    form.errors.setdefault(
      "examples", f"Write {MIN_EXAMPLES} to {MAX_EXAMPLES} examples."
    )
  return pairs


def _sensitive(payload: Mapping[str, Any], form: _Form) -> dict[str, Any]:
  values = form.listed("sensitive", len(sensitive_texts(payload)))
  for i, value in enumerate(values):
    if not isinstance(value, bool):
      form.errors[f"sensitive-{i}"] = "Answer yes or no."
  return {"sensitive": values, "notes": form.text("notes", limit=MAX_NOTE)}


def sensitive_texts(payload: Mapping[str, Any]) -> list[str]:
  """Returns the texts of a screening item that asks for sensitive speech."""
  return list(payload.get("completions") or payload.get("texts") or ())


def groups_of(payload: Mapping[str, Any]) -> list[str]:
  """Returns the groups that a screening item asks about."""
  return list(payload.get("groups") or GROUPS)


def _groups(payload: Mapping[str, Any], form: _Form) -> dict[str, Any]:
  names = groups_of(payload)
  value = form.get("groups")
  if not isinstance(value, list) or any(name not in names for name in value):
    form.errors["groups"] = "Choose groups of the list."
    value = []
  return {
    "groups": [name for name in names if name in value],
    "other": form.text("other", limit=MAX_NOTE),
  }


_FORMS: dict[str, Callable[[Mapping[str, Any], _Form], dict[str, Any]]] = {
  "ranking": _ranking,
  "comparison": _comparison,
  "demonstration": _demonstration,
  "sensitive": _sensitive,
  "groups": _groups,
}


def _number(text: str | None) -> int | None:
  """Returns a small whole number, or None."""
  return int(text) if text and re.fullmatch("[0-9]{1,3}", text) else None


def _parse_ranking(
  payload: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  count = range(len(payload["completions"]))
  cannot_judge = fields.get("cannot_judge_reason", "")
  return {
    "ranks": [_number(fields.get(f"rank-{i}")) for i in count],
    "overall": [_number(fields.get(f"overall-{i}")) for i in count],
    "flags": [
      {name: f"flag-{i}-{name}" in fields for name in FLAG_NAMES} for i in count
    ],
    "notes": fields.get("notes", ""),
    "cannot_judge": cannot_judge if "cannot_judge" in fields else None,
  }


def _parse_comparison(
  _: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  return {
    "confidence": _number(fields.get("confidence")),
    "notes": fields.get("notes", ""),
  }


def _parse_demonstration(
  payload: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  examples = [
    [fields.get(f"question-{i}", ""), fields.get(f"answer-{i}", "")]
    for i in range(MAX_EXAMPLES)
  ]
  while examples and not any(examples[-1]):
    examples.pop()
  return {
    "kind": "given" if payload.get("turns") else fields.get("kind"),
    "intent": fields.get("intent", ""),
    "prompt": fields.get("prompt", ""),
    "examples": examples,
    "answer": fields.get("answer", ""),
  }


def _parse_sensitive(
  payload: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  answers = {"yes": True, "no": False}
  return {
    "sensitive": [
      answers.get(fields.get(f"sensitive-{i}", ""))
      for i in range(len(sensitive_texts(payload)))
    ],
    "notes": fields.get("notes", ""),
  }


def _parse_groups(
  payload: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  return {
    "groups": [
      name
      for i, name in enumerate(groups_of(payload))
      if f"group-{i}" in fields
    ],
    "other": fields.get("other", ""),
  }


_PARSERS: dict[
  str, Callable[[Mapping[str, Any], Mapping[str, str]], dict[str, Any]]
] = {
  "ranking": _parse_ranking,
  "comparison": _parse_comparison,
  "demonstration": _parse_demonstration,
  "sensitive": _parse_sensitive,
  "groups": _parse_groups,
}
