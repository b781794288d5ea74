"""The owner's page of people and invitations."""

from __future__ import annotations

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import invitations, users
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.visit import Visit, error_response, redirect

# Name on the page -> role, held out.
KINDS = {
  "labeler": ("labeler", False),
  "held-out labeler": ("labeler", True),
  "candidate": ("candidate", False),
  "held-out candidate": ("candidate", True),
  "reviewer": ("reviewer", False),
  "owner": ("owner", False),
}


def show(visit: Visit) -> Response:
  """Shows people and invitations."""
  return _page(visit)


def invite(visit: Visit) -> Response:
  """Makes an invitation; its link is shown once."""
  role, held_out = _kind(visit)
  token = invitations.invite(
    visit.store,
    role,
    visit.now,
    held_out=held_out,
    note=visit.field("note").strip()[:200],
  )
  return _page(visit, link=_link(visit, token), name="the person you invite")


def revoke(visit: Visit) -> Response:
  """Makes the link of an invitation useless."""
  invitations.revoke_invitation(visit.store, visit.field("invitation"))
  return redirect("/people")


def reset(visit: Visit) -> Response:
  """Makes a link with which a user chooses a new password."""
  user = users.get_user(visit.store, visit.id())
  token = invitations.invite_to_reset(visit.store, user.id, visit.now)
  return _page(visit, link=_link(visit, token), name=user.name)


def update(visit: Visit) -> Response:
  """Changes a user's role, or whether the user is active."""
  changes = {}
  if visit.field("kind"):
    changes["role"], changes["held_out"] = _kind(visit)
  if visit.field("active"):
    changes["active"] = visit.field("active") == "yes"
  try:
    users.update_user(visit.store, visit.id(), visit.now, **changes)
  except UserError as error:
    response = error_response(visit, error)
    if error.code == "not_found" or visit.accepts_json:
      return response
    text = f"{error.problem[:1].upper()}{error.problem[1:]}: {error.fix}."
    return _page(visit, problem=text, status=response.status_code)
  return redirect("/people")


def _kind(visit: Visit) -> tuple[str, bool]:
  try:
    return KINDS[visit.field("kind")]
  except KeyError as error:
    raise UserError(
      "there is no such role",
      fix="use one of " + ", ".join(KINDS),
      code="bad_role",
    ) from error


def _link(visit: Visit, token: str) -> str:
  """Returns the address of an invitation.

  The token is in the fragment, which browsers do not send, so that no log of a
  server or a proxy has it.
  """
  base = str(visit.request.base_url).rstrip("/")
  if visit.settings.https:
    base = base.replace("http://", "https://", 1)
  return f"{base}/invitation#{token}"


def _page(
  visit: Visit,
  *,
  link: str = "",
  name: str = "",
  problem: str = "",
  status: int = 200,
) -> Response:
  everyone = users.list_users(visit.store)
  with visit.store.read() as connection:
    work = queries.users_work(connection)
  waiting = [
    invitation
    for invitation in invitations.list_invitations(visit.store)
    if invitation.used_at is None and invitation.expires_at > visit.now
  ]
  names = {value: key for key, value in KINDS.items()}
  return visit.render(
    "people.html",
    status,
    users=[(u, names[u.role, u.held_out], work.get(u.id)) for u in everyone],
    kinds=list(KINDS),
    waiting=[(i, names[i.role, i.held_out]) for i in waiting],
    names={u.id: u.name for u in everyone},
    link=link,
    link_name=name,
    problem=problem,
    roles=schema.ROLES,
  )
