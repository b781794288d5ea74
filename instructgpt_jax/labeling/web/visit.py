"""A request with its user and its form, and how pages answer it.

An endpoint is a function Visit → Response. `endpoint` reads the request, checks
host, session, role and CSRF token, runs the function in a thread, and turns
UserErrors into pages. Programs that accept JSON get JSON from the same paths.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import (  # pyright: ignore[reportMissingImports]
  HTMLResponse,
  JSONResponse,
  RedirectResponse,
  Response,
)

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import forms
from instructgpt_jax.labeling.content import well_formed
from instructgpt_jax.labeling.people import sessions
from instructgpt_jax.labeling.people.tokens import new_token
from instructgpt_jax.labeling.people.users import User
from instructgpt_jax.labeling.store import Store
from instructgpt_jax.labeling.web import security
from instructgpt_jax.labeling.web.settings import Settings

DIRECTORY = pathlib.Path(__file__).parent
STATIC = DIRECTORY / "static"
ANYONE = ("owner", "reviewer", "labeler", "candidate")
REVIEWERS = ("owner", "reviewer")
OWNER = ("owner",)
_log = logging.getLogger(__name__)

# Path, name, roles.
_MENU = (
  ("/tasks", "Work", ANYONE),
  ("/labels", "My labels", ANYONE),
  ("/instructions", "Instructions", ANYONE),
  ("/dashboard", "Quality", REVIEWERS),
  ("/adjudication", "Adjudication", REVIEWERS),
  ("/evaluation", "Evaluation", REVIEWERS),
  ("/screening", "Screening", REVIEWERS),
  ("/items", "Items", OWNER),
  ("/people", "People", OWNER),
  ("/export", "Export", OWNER),
)
_STATUS = {
  "not_found": 404,
  "not_allowed": 403,
  "csrf": 403,
  "host": 421,
  "too_large": 413,
  "form": 422,
  "stale_draft": 409,
  "item_closed": 409,
  "place_taken": 409,
  "skipped": 409,
  "already_submitted": 409,
  "already_decided": 409,
  "not_submitted": 409,
  "name_taken": 409,
  "last_owner": 409,
  "held_out_labels": 409,
  "no_invitation": 404,
  "wrong_log_in": 401,
  "log_in": 401,
  "too_many_log_ins": 429,
  "store_locked": 503,
  "disk_full": 507,
  "disk_error": 503,
  "store_unreachable": 503,
  "store_replaced": 503,
  "store_not_opened": 503,
  "damaged_store": 503,
  "not_writable": 503,
  "not_a_store": 503,
}
_HEADINGS = {
  403: "Not allowed",
  404: "Not found",
  405: "Not found",
  409: "This has changed",
  421: "Wrong address",
  429: "Too many attempts",
}


@dataclasses.dataclass(frozen=True)
class Visit:
  """A request.

  Attributes:
    request: Starlette's request; its body has been read.
    store: the store.
    settings: settings of the application.
    cookies: its cookies.
    now: time of the request.
    user: the user, or None before the log-in.
    token: token of the session cookie, or of the cookie before the log-in.
    fields: fields of the form, or the object of a JSON body.
    is_json: whether the body is JSON.
  """

  request: Request
  store: Store
  settings: Settings
  cookies: security.Cookies
  now: float
  user: User | None
  token: str
  fields: Mapping[str, Any]
  is_json: bool

  @property
  def accepts_json(self) -> bool:
    """Whether the client asks for JSON instead of a page."""
    return "application/json" in self.request.headers.get("accept", "")

  @property
  def csrf(self) -> str:
    """The CSRF token of pages of this session."""
    return security.csrf_token(self.token)

  @property
  def signed_in(self) -> User:
    """The user of a page that needs a log-in."""
    if self.user is None:
      raise RuntimeError("the page allows visits without a log-in")
    return self.user

  @property
  def address(self) -> str:
    """The client's IP address."""
    client = self.request.client
    return client.host if client else ""

  def id(self, name: str = "id") -> int:
    """Returns a number of the path."""
    return self.request.path_params[name]

  def query(self, name: str) -> str:
    """Returns a parameter of the query; "" without one."""
    return self.request.query_params.get(name, "")

  def number(self, name: str) -> int | None:
    """Returns a whole number of the query; None without one."""
    return whole_number(self.query(name))

  def field(self, name: str) -> str:
    """Returns a field of the form as text; "" without one."""
    value = self.fields.get(name, "")
    # PostgreSQL has no texts with NUL.
    return value.replace("\0", "\ufffd") if isinstance(value, str) else ""

  def render(
    self, template: str, status: int = 200, **values: Any
  ) -> HTMLResponse:
    """Returns a page."""
    user = self.user
    menu = [(p, n) for p, n, roles in _MENU if user and user.role in roles]
    here = "/" + self.request.url.path.split("/")[1]
    html = (
      _environment()
      .get_template(template)
      .render(
        settings=self.settings,
        user=user,
        csrf=self.csrf,
        menu=menu,
        here=here,
        **values,
      )
    )
    return HTMLResponse(html, status_code=status)


def whole_number(text: str) -> int | None:
  """Returns the number that a text is, if it can be the number of a row."""
  return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def redirect(path: str) -> RedirectResponse:
  """Returns the answer that makes a browser open another page."""
  return RedirectResponse(path, status_code=303)


def not_found() -> UserError:
  """Returns the error for what does not exist or is another user's."""
  return UserError(
    "there is no such page", fix="return to the start page", code="not_found"
  )


def date(time: float | None) -> str:
  """Returns a time as text, in UTC."""
  if time is None:
    return ""
  moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
  return moment.strftime("%Y-%m-%d %H:%M")


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(DIRECTORY / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.globals.update(
    date=date,
    static=static_path,
    flags=forms.FLAGS,
    letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ",
  )
  return environment


@functools.cache
def static_path(name: str) -> str:
  """Returns the path of a static file, which changes with its content."""
  digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
  return f"/static/{name}?v={digest[:12]}"


Handle = Callable[[Visit], Response]


def endpoint(
  handle: Handle,
  store: Store,
  settings: Settings,
  cookies: security.Cookies,
  roles: tuple[str, ...] = (),
) -> Callable[[Request], Awaitable[Response]]:
  """Returns Starlette's endpoint of a page.

  Args:
    handle: answers a visit.
    store: the store.
    settings: settings of the application.
    cookies: its cookies.
    roles: roles that may see the page; () needs no log-in.
  """

  async def run(request: Request) -> Response:
    visit = _first_visit(request, store, settings, cookies)
    try:
      security.check_host(request, settings)
      body = await security.read_body(request)
    except UserError as error:
      return error_response(visit, error)
    return await run_in_threadpool(_answer, visit, body, handle, roles)

  return run


def _first_visit(
  request: Request, store: Store, settings: Settings, cookies: security.Cookies
) -> Visit:
  return Visit(
    request=request,
    store=store,
    settings=settings,
    cookies=cookies,
    now=settings.clock(),
    user=None,
    token=cookies.form(request) or new_token(),
    fields={},
    is_json=False,
  )


def _answer(
  visit: Visit, body: bytes, handle: Handle, roles: tuple[str, ...]
) -> Response:
  request = visit.request
  try:
    visit = _read_session(visit)
    visit = _read_fields(visit, body)
    if roles:
      if visit.user is None:
        return _ask_to_log_in(visit)
      if visit.user.role not in roles:
        raise UserError(
          "your role does not have this page",
          fix="ask the project's owner",
          code="not_allowed",
        )
    if request.method == "POST":
      security.check_csrf(request, visit.token, visit.fields)
    response = handle(visit)
  except UserError as error:
    response = error_response(visit, error)
  except Exception:
    _log.exception("%s %s failed", request.method, request.url.path)
    response = error_response(
      visit,
      UserError(
        "the server failed; its log says why",
        fix="try again, or tell the project's owner",
        code="failed",
      ),
    )
  if visit.user is None and visit.cookies.form(request) != visit.token:
    visit.cookies.set_form(response, visit.token)
  return response


def _read_session(visit: Visit) -> Visit:
  """Adds the user; a session that has ended leaves the form's token."""
  token = visit.cookies.session(visit.request)
  user = sessions.session_user(visit.store, token, visit.now) if token else None
  return (
    visit
    if user is None
    else dataclasses.replace(visit, user=user, token=token)
  )


def _read_fields(visit: Visit, body: bytes) -> Visit:
  if visit.request.method != "POST":
    return visit
  kind = visit.request.headers.get("content-type", "").split(";")[0].strip()
  if kind != "application/json":
    return dataclasses.replace(visit, fields=security.parse_fields(body))
  try:
    value = json.loads(body, parse_constant=_refuse_constant)
    value = well_formed(value)
  except (ValueError, RecursionError) as error:
    raise UserError(
      "the body is not JSON", fix="send a JSON object", code="bad_json"
    ) from error
  if not isinstance(value, dict):
    raise UserError(
      "the body is not an object", fix="send a JSON object", code="bad_json"
    )
  return dataclasses.replace(visit, fields=value, is_json=True)


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _ask_to_log_in(visit: Visit) -> Response:
  if visit.accepts_json or visit.request.method == "POST":
    return error_response(
      visit,
      UserError(
        "you are not logged in", fix="log in, then try again", code="log_in"
      ),
    )
  url = visit.request.url
  path = url.path + (f"?{url.query}" if url.query else "")
  if path == "/":
    return redirect("/login")
  return redirect(f"/login?next={quote(path, safe='')}")


def error_response(visit: Visit, error: UserError) -> Response:
  """Returns the page, or the JSON object, of an error."""
  code = error.code or "error"
  status = _STATUS.get(code, 500 if code == "failed" else 400)
  problem = error.problem[:1].upper() + error.problem[1:]
  if not problem.endswith((".", "?", "!")):
    problem += "."
  if visit.accepts_json:
    body = {"error": problem, "fix": error.fix, "code": code}
    return JSONResponse(body, status_code=status)
  return visit.render(
    "error.html",
    status,
    heading=_HEADINGS.get(status, "This did not work"),
    problem=problem,
    fix=error.fix[:1].upper() + error.fix[1:] + "." if error.fix else "",
  )
