"""Runs the web application of a store until a signal."""

from __future__ import annotations

import dataclasses
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

from instructgpt_jax.cli import listening
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import project
from instructgpt_jax.labeling.store import Store

WILDCARDS = ("0.0.0.0", "::", "")
_GRACE_SECONDS = 5  # for requests that are being answered at the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
  """Where the server listens, and under which names it is opened.

  Attributes:
    host: address to listen on.
    port: port to listen on; 0 chooses a free one.
    names: further host names that browsers use.
    https: whether a proxy in front of it serves https only.
  """

  host: str = "127.0.0.1"
  port: int = 8765
  names: tuple[str, ...] = ()
  https: bool = False

  def hosts(self) -> tuple[str, ...]:
    """Returns the host names under which requests are accepted.

    Raises:
      UserError: the server listens on all addresses, and no name was given.
    """
    if self.host in WILDCARDS:
      if not self.names:
        raise UserError(
          f"{self.host or 'all addresses'} says not under which names browsers"
          " open the server",
          field="--host",
          fix="add --names=NAME, with the host names or addresses that people"
          " type, or use 127.0.0.1",
          code="no_names",
        )
      return (*listening.LOOPBACK, *self.names)
    return tuple(dict.fromkeys((*listening.LOOPBACK, self.host, *self.names)))

  def is_exposed(self) -> bool:
    """Returns whether passwords may travel over a network in plain text."""
    return not self.https and self.host not in listening.LOOPBACK


def serve(
  store: Store,
  address: Address,
  *,
  count_tokens: Callable[[str], int] | None = None,
  on_ready: Callable[[str], None] = lambda url: None,
) -> None:
  """Serves the pages of a store until a signal.

  Args:
    store: open store, which has a project.
    address: where to listen.
    count_tokens: returns the number of tokens of a text; None shows none.
    on_ready: called with the address once the server answers.

  Raises:
    UserError: the port is in use, or the store has no project.
  """
  from instructgpt_jax.labeling.web import app as app_lib
  from instructgpt_jax.labeling.web import settings as settings_lib

  settings = settings_lib.Settings(
    project=project.read_settings(store),
    hosts=address.hosts(),
    https=address.https,
    count_tokens=count_tokens,
  )
  with listening.bind(address.host, address.port) as sock:
    app = app_lib.build_app(store, settings)
    try:
      _run(app, sock, settings.title, address.https, on_ready)
    except OSError as error:
      raise listening.bind_error(error, address.host, address.port) from error


def _run(
  app: Any,
  sock: socket.socket,
  title: str,
  https: bool,
  on_ready: Callable[[str], None],
) -> None:
  import uvicorn  # pyright: ignore[reportMissingImports]

  # The application logs failures with their traceback.
  logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")

  class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
      await super().startup(sockets)
      url = listening.url_of(sock)
      print(
        f"serving {title} at {url} (Ctrl-C ends)", file=sys.stderr, flush=True
      )
      on_ready(url)

  config = uvicorn.Config(
    app,
    log_level="warning",
    access_log=False,
    lifespan="off",
    ws="none",
    # Only the proxy that ends https states the addresses of clients.
    proxy_headers=https,
    forwarded_allow_ips="127.0.0.1,::1" if https else "",
    server_header=False,
    timeout_graceful_shutdown=_GRACE_SECONDS,
  )
  Server(config).run(sockets=[sock])
