"""The command that serves the pages of a store."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence

from instructgpt_jax.data import tokenizers
from instructgpt_jax.labeling import server
from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.labeling.commands import stores
from instructgpt_jax.labeling.people import invitations
from instructgpt_jax.labeling.store import Store


def serve(flags: argparse.Namespace) -> None:
  """Serves the pages of a store."""
  address = address_of(flags)
  if flags.project:
    store = stores.update(flags.store, flags.project, create=True)
  else:
    store = store_lib.open_store(flags.store)
  try:
    run_server(store, address, flags, ())
  finally:
    store.close()


def address_of(flags: argparse.Namespace) -> server.Address:
  """Returns where the flags say that the server listens.

  Raises:
    UserError: it listens on all addresses, and no name was given.
  """
  names = tuple(n.strip() for n in flags.names.split(",") if n.strip())
  address = server.Address(
    host=flags.host, port=flags.port, names=names, https=flags.https
  )
  address.hosts()  # Refuses a wildcard without names.
  if address.is_exposed():
    print(
      "warning: passwords travel in plain text; put a proxy with https in"
      " front, and add --https (docs/labeling.md)",
      file=sys.stderr,
    )
  return address


def run_server(
  store: Store,
  address: server.Address,
  flags: argparse.Namespace,
  guests: Sequence[str],
) -> None:
  """Serves; prints the owner's link, and links for guests, once it answers."""

  def on_ready(url: str) -> None:
    if address.names:
      scheme = "https" if address.https else "http"
      url = f"{scheme}://{address.names[0]}"
    if "owner" not in guests:
      stores.print_owner_link(store, url)
    links = [url]
    for role in guests:
      token = invitations.invite(store, role, time.time(), note="example")
      links.append(f"{url}/invitation#{token}")
      print(f"{role}: {links[-1]}", flush=True)
    if flags.open and _has_display():
      webbrowser.open(links[-1])

  # uvicorn ends its work at SIGTERM, and then raises the signal again.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  server.serve(
    store,
    address,
    count_tokens=_token_counter(flags.tokenizer),
    on_ready=on_ready,
  )


def _token_counter(path: str) -> Callable[[str], int] | None:
  """Returns what counts the tokens of a text; None without a tokenizer."""
  if not path:
    return None
  tokenizer = tokenizers.load_tokenizer(path)
  return lambda text: len(tokenizer.encode(text))


def _has_display() -> bool:
  """Returns whether a browser opens a window, not in this terminal."""
  names = ("DISPLAY", "WAYLAND_DISPLAY")
  return (
    sys.platform == "darwin"
    or os.name == "nt"
    or any(os.environ.get(name) for name in names)
  )
