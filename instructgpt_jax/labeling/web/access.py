"""Pages of log-in, invitations and passwords."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling.people import invitations, passwords, sessions
from instructgpt_jax.labeling.web import security
from instructgpt_jax.labeling.web.visit import (
  Visit,
  error_response,
  redirect,
)


def show_log_in(visit: Visit) -> Response:
  """Shows the form of the log-in."""
  if visit.accepts_json:
    return JSONResponse({"csrf": visit.csrf})
  if visit.user is not None:
    return redirect("/")
  message = ""
  if visit.query("changed"):
    message = "Your password is changed. Log in with the new one."
  return _log_in_page(visit, "", 200, visit.query("next"), message)


def log_in(visit: Visit) -> Response:
  """Begins a session."""
  name, password = visit.field("name"), visit.field("password")
  try:
    token, _ = sessions.log_in(
      visit.store, name, password, visit.address, visit.now
    )
  except UserError as error:
    response = error_response(visit, error)
    if visit.accepts_json:
      return response
    text = _sentence(error)
    return _log_in_page(visit, text, response.status_code, visit.field("next"))
  return _begin_session(visit, token, security.safe_path(visit.field("next")))


def _log_in_page(
  visit: Visit, problem: str, status: int, next_path: str, message: str = ""
) -> Response:
  return visit.render(
    "login.html",
    status,
    problem=problem,
    message=message,
    name=visit.field("name"),
    next=security.safe_path(next_path),
  )


def _begin_session(visit: Visit, token: str, path: str) -> Response:
  if visit.accepts_json:
    response = JSONResponse({"csrf": security.csrf_token(token), "next": path})
  else:
    response = redirect(path)
  visit.cookies.set_session(response, token, visit.now)
  return response


def log_out(visit: Visit) -> Response:
  """Ends the session."""
  sessions.log_out(visit.store, visit.token)
  response = redirect("/login")
  visit.cookies.clear_session(response)
  return response


def show_invitation(visit: Visit) -> Response:
  """Shows the form in which an invited person chooses name and password."""
  return _invitation_page(visit, "", 200)


def accept_invitation(visit: Visit) -> Response:
  """Makes the user of an invitation, and begins a session."""
  token, password = visit.field("token").strip(), visit.field("password")
  try:
    user = invitations.accept_invitation(
      visit.store, token, visit.field("name"), password, visit.now
    )
  except UserError as error:
    response = error_response(visit, error)
    if visit.accepts_json:
      return response
    return _invitation_page(visit, _sentence(error), response.status_code)
  session, _ = sessions.log_in(
    visit.store, user.name, password, visit.address, visit.now
  )
  return _begin_session(visit, session, "/")


def _invitation_page(visit: Visit, problem: str, status: int) -> Response:
  return visit.render(
    "invitation.html",
    status,
    problem=problem,
    token=visit.field("token"),
    name=visit.field("name"),
    min_password=passwords.MIN_PASSWORD,
  )


def show_account(visit: Visit) -> Response:
  """Shows the form that changes a password."""
  return visit.render("account.html", problem="")


def change_password(visit: Visit) -> Response:
  """Changes the password, which ends all sessions."""
  try:
    sessions.change_password(
      visit.store,
      visit.signed_in.id,
      visit.field("old"),
      visit.field("new"),
      visit.address,
      visit.now,
    )
  except UserError as error:
    status = error_response(visit, error).status_code
    return visit.render("account.html", status, problem=_sentence(error))
  response = redirect("/login?changed=1")
  visit.cookies.clear_session(response)
  return response


def _sentence(error: UserError) -> str:
  """Returns an error and its fix as sentences."""
  parts = [error.problem, error.fix]
  return " ".join(p[:1].upper() + p[1:].rstrip(".") + "." for p in parts if p)
