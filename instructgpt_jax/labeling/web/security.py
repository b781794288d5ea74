"""Headers, cookies, CSRF tokens and limits of requests.

A session cookie is a random token, signed; the store has the token's hash. The
CSRF token of a page is an HMAC with the token as the key, so that it needs no
storage and ends with the session. Pages before the log-in have a cookie of
their own for this.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders  # pyright: ignore[reportMissingImports]
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling.people.sessions import SESSION_SECONDS
from instructgpt_jax.labeling.people.signing import Signer
from instructgpt_jax.labeling.web.settings import Settings

MAX_BODY = 1 << 20  # bytes
_MAX_FIELDS = 500
_CSRF_HEADER = "x-csrf-token"
_POLICY = (
  "default-src 'self'; base-uri 'none'; form-action 'self';"
  " frame-ancestors 'none'; object-src 'none'"
)
_HEADERS = {
  "Content-Security-Policy": _POLICY,
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
  "Referrer-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HSTS = "max-age=31536000"


class SecurityHeaders:
  """Adds the security headers to all responses of an ASGI application."""

  def __init__(self, app: Any, https: bool):
    self._app = app
    self._headers = dict(_HEADERS)
    if https:
      self._headers["Strict-Transport-Security"] = _HSTS

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Handles a request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message: Any) -> None:
      if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in self._headers.items():
          headers[name] = value
        headers.setdefault("Cache-Control", "no-store")
      await send(message)

    await self._app(scope, receive, send_with_headers)


class Cookies:
  """Names and attributes of the application's cookies."""

  def __init__(self, https: bool, signer: Signer):
    prefix = "__Host-" if https else ""
    self._https, self._signer = https, signer
    self._session = f"{prefix}labeling_session"
    self._form = f"{prefix}labeling_form"

  def session(self, request: Request) -> str:
    """Returns the token of the session; "" without one that was signed."""
    return self._signer.token(request.cookies.get(self._session, ""))

  def form(self, request: Request) -> str:
    """Returns the token of a page before the log-in; "" without one."""
    return request.cookies.get(self._form, "")

  def set_session(self, response: Response, token: str, now: float) -> None:
    """Sets the cookie of a new session."""
    cookie = self._signer.sign(token, now)
    self._set(response, self._session, cookie, int(SESSION_SECONDS))

  def set_form(self, response: Response, token: str) -> None:
    """Sets the cookie of pages before the log-in."""
    self._set(response, self._form, token, None)

  def clear_session(self, response: Response) -> None:
    """Removes the cookie of a session."""
    self._set(response, self._session, "", 0)

  def _set(
    self, response: Response, name: str, value: str, max_age: int | None
  ) -> None:
    response.set_cookie(
      name,
      value,
      max_age=max_age,
      path="/",
      secure=self._https,
      httponly=True,
      samesite="lax",
    )


def csrf_token(token: str) -> str:
  """Returns the CSRF token that belongs to the token of a cookie."""
  return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def check_csrf(request: Request, token: str, fields: Mapping[str, Any]) -> None:
  """Refuses a request that another site may have caused.

  Raises:
    UserError: the token is missing or wrong, or another site sent the request.
  """
  sent = request.headers.get(_CSRF_HEADER) or fields.get("csrf")
  valid = bool(token) and hmac.compare_digest(
    str(sent).encode(), csrf_token(token).encode()
  )
  if not valid or not _is_same_origin(request):
    raise UserError(
      "this form is of another session",
      fix="reload the page and send it again",
      code="csrf",
    )


def _is_same_origin(request: Request) -> bool:
  """Returns whether a browser's headers allow that our page sent a request."""
  site = request.headers.get("sec-fetch-site", "same-origin")
  origin = request.headers.get("origin")
  if site not in ("same-origin", "none"):
    return False
  host = request.headers.get("host")
  return origin is None or origin.partition("://")[2] == host


def check_host(request: Request, settings: Settings) -> None:
  """Refuses host names that are not the server's.

  Raises:
    UserError: the name is not among `settings.hosts`.
  """
  url = request.url
  # Starlette replaces a header that is no host by the server's own address.
  is_whole = url.netloc == request.headers.get("host")
  if settings.hosts and not (is_whole and url.hostname in settings.hosts):
    raise UserError(
      "this server does not answer under this host name",
      fix="open it under the address that it printed",
      code="host",
    )


async def read_body(request: Request) -> bytes:
  """Reads the body of a request.

  Raises:
    UserError: it is larger than `MAX_BODY`.
  """
  parts, size = [], 0
  async for part in request.stream():
    size += len(part)
    if size > MAX_BODY:
      raise UserError(
        f"the request is larger than {MAX_BODY >> 20} MiB",
        fix="send less text",
        code="too_large",
      )
    parts.append(part)
  return b"".join(parts)


def parse_fields(body: bytes) -> dict[str, str]:
  """Reads a URL-encoded form; the last of equal names counts.

  Raises:
    UserError: it is not UTF-8, or has too many fields.
  """
  try:
    return dict(
      parse_qsl(
        body.decode("ascii"),
        keep_blank_values=True,
        errors="strict",
        max_num_fields=_MAX_FIELDS,
      )
    )
  except ValueError as error:
    raise UserError(
      "the form could not be read", fix="reload the page", code="bad_form"
    ) from error


def safe_path(path: str) -> str:
  """Returns a path of this server to continue at; "/" for anything else."""
  is_local = path.startswith("/") and not path.startswith(("//", "/\\"))
  return path if is_local and path.isprintable() else "/"
