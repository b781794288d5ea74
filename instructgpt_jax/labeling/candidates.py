"""Screening in the store: candidates' answers, ratings and decisions."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.forms import BEST, WORST
from instructgpt_jax.labeling.people import users
from instructgpt_jax.labeling.screening import ScreeningAnswer
from instructgpt_jax.labeling.store import Store, is_id

# Decision -> what becomes of the user.
DECISIONS: dict[str, dict[str, Any]] = {
  "undecided": dict(role="candidate", active=True),
  "labeler": dict(role="labeler", held_out=False, active=True),
  "held out": dict(role="labeler", held_out=True, active=True),
  "rejected": dict(role="candidate", active=False),
}
_ALLOWED = ("owner", "reviewer")


@dataclasses.dataclass(frozen=True)
class Decision:
  """The owner's verdict on a candidate.

  Attributes:
    decision: one of `DECISIONS`.
    note: why.
    at: time.
  """

  decision: str
  note: str
  at: float


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A candidate's demonstration.

  Attributes:
    assignment_id: number of its assignment.
    turns: the prompt.
    content: content of the form.
    ratings: rating of each reviewer, by user id.
  """

  assignment_id: int
  turns: list[dict[str, str]]
  content: dict[str, Any]
  ratings: dict[int, int]


def read_answers(
  connection: sa.Connection,
) -> tuple[list[ScreeningAnswer], dict[str, int]]:
  """Reads all submitted screening items.

  Ratings that are older than the last change of a demonstration do not count.

  Returns:
    The answers, and the user id of each candidate by name.
  """
  ratings = _read_ratings(connection)
  answers, ids = [], {}
  for row in connection.execute(_query()):
    ids[row.name] = row.user_id
    answers.append(
      ScreeningAnswer(
        candidate=row.name,
        kind=row.payload["kind"],
        content=row.content,
        gold=row.gold,
        ratings=tuple(
          float(r.rating) for r in ratings[row.assignment_id] if _counts(r, row)
        ),
      )
    )
  return answers, ids


def read_demonstrations(
  connection: sa.Connection, user_id: int
) -> list[Demonstration]:
  """Reads a candidate's demonstrations, in the order of items."""
  ratings = _read_ratings(connection)
  rows = connection.execute(_query().where(schema.labels.c.user_id == user_id))
  return [
    Demonstration(
      row.assignment_id,
      row.payload.get("turns") or [],
      row.content,
      {
        r.user_id: r.rating
        for r in ratings[row.assignment_id]
        if _counts(r, row)
      },
    )
    for row in rows
    if row.payload["kind"] == "demonstration"
  ]


def _query() -> sa.Select[Any]:
  items, labels, people = schema.items.c, schema.labels.c, schema.users.c
  return (
    sa.select(
      people.name,
      labels.user_id,
      labels.assignment_id,
      labels.content,
      labels.submitted_at,
      labels.revised_at,
      items.payload,
      items.gold,
    )
    .join(schema.items, items.id == labels.item_id)
    .join(schema.users, people.id == labels.user_id)
    .where(items.task == "screening")
    .order_by(labels.item_id, labels.user_id)
  )


def _read_ratings(connection: sa.Connection) -> dict[int, list[Any]]:
  by_assignment: dict[int, list[Any]] = collections.defaultdict(list)
  table = schema.ratings
  for row in connection.execute(sa.select(table).order_by(table.c.user_id)):
    by_assignment[row.assignment_id].append(row)
  return by_assignment


def _counts(rating: Any, label: Any) -> bool:
  return rating.at >= (label.revised_at or label.submitted_at)


def rate(
  store: Store, user_id: int, assignment_id: int, rating: int, now: float
) -> int:
  """Stores a reviewer's rating of a candidate's demonstration.

  A reviewer's newest rating of a demonstration counts.

  Returns:
    The id of the candidate.

  Raises:
    UserError: the user is no reviewer or owner ("not_allowed"), there is no
      such demonstration ("not_found"), or the rating is not from 1 to 7
      ("bad_rating").
  """
  if not WORST <= rating <= BEST:
    raise UserError(
      f"the rating is not from {WORST} to {BEST}",
      fix="choose one of the numbers",
      code="bad_rating",
    )
  table = schema.ratings
  with store.begin() as connection:
    users.check_role(connection, user_id, *_ALLOWED)
    label = None
    if is_id(assignment_id):
      label = connection.execute(
        _query().where(schema.labels.c.assignment_id == assignment_id)
      ).one_or_none()
    if label is None or label.payload["kind"] != "demonstration":
      raise UserError(
        "there is no such demonstration",
        fix="reload the candidate's page",
        code="not_found",
      )
    key = (table.c.assignment_id == assignment_id) & (
      table.c.user_id == user_id
    )
    connection.execute(sa.delete(table).where(key))
    connection.execute(
      sa.insert(table).values(
        assignment_id=assignment_id, user_id=user_id, rating=rating, at=now
      )
    )
  return label.user_id


def decide(
  store: Store,
  owner_id: int,
  user_id: int,
  decision: str,
  note: str,
  now: float,
) -> None:
  """Stores the owner's verdict on a candidate, and changes the role by it.

  Raises:
    UserError: the user is not the owner ("not_allowed"), there is no such
      candidate ("not_found"), or no such decision ("bad_decision"), or it
      would make labels of a held-out labeler training labels
      ("held_out_labels").
  """
  if decision not in DECISIONS:
    raise UserError(
      "there is no such decision",
      fix="use one of " + ", ".join(DECISIONS),
      code="bad_decision",
    )
  with store.begin() as connection:
    users.check_role(connection, owner_id, "owner")
    _check_candidate(connection, user_id)
    connection.execute(
      sa.insert(schema.decisions).values(
        user_id=user_id, decision=decision, by=owner_id, at=now, note=note
      )
    )
    users.change_user(connection, user_id, now, **DECISIONS[decision])


def _check_candidate(connection: sa.Connection, user_id: int) -> None:
  """Refuses users who are not, and never were, candidates."""
  people, decisions = schema.users.c, schema.decisions.c
  role = None
  if is_id(user_id):
    role = connection.scalar(sa.select(people.role).where(people.id == user_id))
  if role == "labeler":
    query = sa.select(decisions.id).where(decisions.user_id == user_id)
    role = "candidate" if connection.scalar(query.limit(1)) else role
  if role != "candidate":
    raise UserError(
      "there is no such candidate", fix="reload the page", code="not_found"
    )


def read_decisions(connection: sa.Connection) -> dict[int, Decision]:
  """Returns the newest verdict on each candidate, by user id."""
  table = schema.decisions
  rows = connection.execute(sa.select(table).order_by(table.c.id))
  return {row.user_id: Decision(row.decision, row.note, row.at) for row in rows}
