"""Pages of candidates beside the soft cuts of screening."""

from __future__ import annotations

import math

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import candidates, screening
from instructgpt_jax.labeling.forms import BEST
from instructgpt_jax.labeling.people import users
from instructgpt_jax.labeling.web.visit import Visit, not_found, redirect


def show(visit: Visit) -> Response:
  """Shows all candidates."""
  with visit.store.read() as connection:
    answers, ids = candidates.read_answers(connection)
    decisions = candidates.read_decisions(connection)
  for user in users.list_users(visit.store):
    if user.role == "candidate":
      ids.setdefault(user.name, user.id)
  rows = {
    row.candidate: row
    for row in screening.screen_candidates(answers, visit.settings.cuts)
  }
  return visit.render(
    "screening.html",
    candidates=[
      (user_id, name, rows.get(name), decisions.get(user_id))
      for name, user_id in sorted(ids.items())
    ],
    cuts=visit.settings.cuts,
    best=BEST,
    choices=list(candidates.DECISIONS),
    isnan=math.isnan,
  )


def show_candidate(visit: Visit) -> Response:
  """Shows a candidate's demonstrations, which reviewers rate."""
  user_id = visit.id()
  user = users.get_user(visit.store, user_id)
  with visit.store.read() as connection:
    answers, ids = candidates.read_answers(connection)
    demonstrations = candidates.read_demonstrations(connection, user_id)
  if user.role != "candidate" and user_id not in ids.values():
    raise not_found()
  return visit.render(
    "candidate.html",
    candidate=user,
    demonstrations=demonstrations,
    answers=sum(answer.candidate == user.name for answer in answers),
    mine=visit.signed_in.id,
  )


def rate(visit: Visit) -> Response:
  """Stores a reviewer's rating of a demonstration."""
  text = visit.field("rating")
  rating = int(text) if text.isdecimal() and len(text) == 1 else 0
  user_id = candidates.rate(
    visit.store, visit.signed_in.id, visit.id(), rating, visit.now
  )
  return redirect(f"/screening/{user_id}")


def decide(visit: Visit) -> Response:
  """Stores the owner's decision, and changes the candidate's role."""
  candidates.decide(
    visit.store,
    visit.signed_in.id,
    visit.id(),
    visit.field("decision"),
    visit.field("note").strip()[:1000],
    visit.now,
  )
  return redirect("/screening")
