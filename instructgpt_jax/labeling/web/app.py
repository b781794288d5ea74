"""Builds the web application: its routes, headers and static files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette  # pyright: ignore[reportMissingImports]
from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]
from starlette.routing import Mount, Route  # pyright: ignore[reportMissingImports]
from starlette.staticfiles import StaticFiles  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling.people.signing import Signer
from instructgpt_jax.labeling.store import Store
from instructgpt_jax.labeling.web import (
  access,
  adjudication,
  evaluation,
  exports,
  instructions,
  items,
  quality_page,
  roster,
  screening_page,
  work,
)
from instructgpt_jax.labeling.web.security import Cookies, SecurityHeaders
from instructgpt_jax.labeling.web.settings import Settings
from instructgpt_jax.labeling.web.visit import (
  ANYONE,
  OWNER,
  REVIEWERS,
  STATIC,
  Handle,
  Visit,
  endpoint,
  not_found,
)

# Path, method, handle, roles that may use it; () needs no log-in.
ROUTES: tuple[tuple[str, str, Handle, tuple[str, ...]], ...] = (
  ("/login", "GET", access.show_log_in, ()),
  ("/login", "POST", access.log_in, ()),
  ("/invitation", "GET", access.show_invitation, ()),
  ("/invitation", "POST", access.accept_invitation, ()),
  ("/logout", "POST", access.log_out, ANYONE),
  ("/account", "GET", access.show_account, ANYONE),
  ("/account/password", "POST", access.change_password, ANYONE),
  ("/", "GET", work.home, ANYONE),
  ("/tasks", "GET", work.next_work, ANYONE),
  ("/tasks/{id:int}", "GET", work.show_work, ANYONE),
  ("/tasks/{id:int}/draft", "POST", work.save_draft, ANYONE),
  ("/tasks/{id:int}/submit", "POST", work.submit, ANYONE),
  ("/tasks/{id:int}/skip", "POST", work.skip, ANYONE),
  ("/tasks/{id:int}/undo-skip", "POST", work.undo_skip, ANYONE),
  ("/tasks/{id:int}/withdraw", "POST", work.withdraw, ANYONE),
  ("/labels", "GET", work.list_labels, ANYONE),
  ("/instructions", "GET", instructions.show, ANYONE),
  ("/instructions", "POST", instructions.publish, OWNER),
  ("/instructions/preview", "POST", instructions.preview, OWNER),
  ("/dashboard", "GET", quality_page.show, REVIEWERS),
  ("/adjudication", "GET", adjudication.show_list, REVIEWERS),
  ("/adjudication/{id:int}", "GET", adjudication.show_item, REVIEWERS),
  ("/adjudication/{id:int}", "POST", adjudication.decide, REVIEWERS),
  ("/evaluation", "GET", evaluation.show, REVIEWERS),
  ("/screening", "GET", screening_page.show, REVIEWERS),
  ("/screening/{id:int}", "GET", screening_page.show_candidate, REVIEWERS),
  ("/screening/{id:int}/decision", "POST", screening_page.decide, OWNER),
  ("/screening/labels/{id:int}", "POST", screening_page.rate, REVIEWERS),
  ("/items", "GET", items.show_list, OWNER),
  ("/items/{id:int}", "GET", items.show_item, OWNER),
  ("/items/{id:int}/close", "POST", items.close, OWNER),
  ("/items/{id:int}/reopen", "POST", items.reopen, OWNER),
  ("/items/close-full", "POST", items.close_full, OWNER),
  ("/people", "GET", roster.show, OWNER),
  ("/people/invite", "POST", roster.invite, OWNER),
  ("/people/invitations/revoke", "POST", roster.revoke, OWNER),
  ("/people/{id:int}", "POST", roster.update, OWNER),
  ("/people/{id:int}/reset", "POST", roster.reset, OWNER),
  ("/export", "GET", exports.show, OWNER),
  ("/export/{name}", "GET", exports.download, OWNER),
)


def build_app(store: Store, settings: Settings) -> Starlette:
  """Returns the ASGI application of a store."""

  cookies = Cookies(settings.https, Signer(store))

  def page(handle: Handle, roles: tuple[str, ...] = ()) -> Any:
    return endpoint(handle, store, settings, cookies, roles)

  routes: list[Any] = [
    Route(path, page(handle, roles), methods=[method])
    for path, method, handle, roles in ROUTES
  ]
  routes.append(Mount("/static", _CachedFiles(directory=STATIC)))
  return Starlette(
    routes=routes,
    middleware=[Middleware(SecurityHeaders, https=settings.https)],
    exception_handlers={HTTPException: _http_error(page(_no_page))},
  )


class _CachedFiles(StaticFiles):
  """Static files, whose addresses change with their content."""

  def file_response(self, *args: Any, **options: Any) -> Response:
    response = super().file_response(*args, **options)
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def _no_page(visit: Visit) -> Response:
  raise not_found()


def _http_error(
  page: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request, Exception], Awaitable[Response]]:
  """Returns the handler of paths and methods that do not exist."""

  async def handle(request: Request, error: Exception) -> Response:
    response = await page(request)
    status = getattr(error, "status_code", 404)
    if response.status_code == 404:
      response.status_code = status
    return response

  return handle
