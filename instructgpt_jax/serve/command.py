"""Serves the model of a stage to clients of the OpenAI interface.

  python -m instructgpt_jax.serve --checkpoint=DIR

DIR is the workdir of a stage whose model writes text, a Hugging Face directory,
or a GGUF file. The server has /v1/models, /v1/completions and
/v1/chat/completions, with streaming and log-probabilities. Requests that wait
together are decoded in one batch. An answer depends on its request and seed
only. Parameters that are not supported are errors. Log-probabilities are the
model's own, at temperature 1, and include the token that ends an answer.

The server listens on 127.0.0.1 and asks for no password. Ctrl-C and SIGTERM end
it. It needs the packages starlette and uvicorn (extra 'server').
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from instructgpt_jax.cli import launch, listening, process_settings
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError

_GRACE_SECONDS = 5  # for answers that are being sampled at the end
_MAX_BATCH = 1024


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns:
    Exit status: 0, also after SIGTERM; 2 after a user error; 130 after an
    interrupt.
  """
  interrupted = False

  def run() -> None:
    nonlocal interrupted
    try:
      _serve(_parse(argv))
    except KeyboardInterrupt:
      interrupted = True

  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  status = launch.run_with_errors(run)
  return launch.INTERRUPTED if interrupted else status


def _serve(flags: argparse.Namespace) -> None:
  _check_packages()
  _check_host(flags)
  process_settings.silence_libraries()
  process_settings.trim_malloc_after_compile()
  process_settings.tune_gc()
  with listening.bind(flags.host, flags.port) as sock:
    from instructgpt_jax.chat import engine  # Imports JAX, unlike --help.
    from instructgpt_jax.serve import app

    session = engine.load_session(flags.checkpoint, engine.SamplingOptions())
    name = flags.name or _default_name(flags.checkpoint)
    service = app.Service(session, name, flags.max_batch)
    try:
      _run_server(
        app.make_app(service, any_host=flags.allow_remote), sock, name
      )
    except OSError as error:
      raise listening.bind_error(error, flags.host, flags.port) from error
    finally:
      service.stop()
      if service.started and not service.closed:
        # The thread compiles a program, which nothing can interrupt.
        sys.stderr.flush()
        os._exit(0)


def _run_server(app: Any, sock: socket.socket, name: str) -> None:
  """Serves until a signal; prints the address once the server is ready."""
  import uvicorn  # pyright: ignore[reportMissingImports]

  class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
      await super().startup(sockets)
      print(
        f"serving {name} at {listening.url_of(sock)}/v1 (Ctrl-C ends)",
        file=sys.stderr,
        flush=True,
      )

  config = uvicorn.Config(
    app,
    log_level="warning",
    access_log=False,
    lifespan="on",
    ws="none",
    timeout_graceful_shutdown=_GRACE_SECONDS,
  )
  Server(config).run(sockets=[sock])


def _check_packages() -> None:
  for package in ("starlette", "uvicorn"):
    try:
      importlib.import_module(package)
    except ImportError as error:
      raise UserError(
        f"the server needs the package {package}, which is not installed",
        fix="pip install starlette uvicorn (extra 'server')",
        code="missing_package",
      ) from error


def _check_host(flags: argparse.Namespace) -> None:
  if flags.host not in listening.LOOPBACK and not flags.allow_remote:
    raise UserError(
      f"{flags.host} can be reached from other computers, and the server asks"
      " for no password",
      field="--host",
      fix="add --allow_remote if all who can reach it may use it, or use"
      " 127.0.0.1",
      code="remote_host",
    )


def _default_name(checkpoint: str) -> str:
  """Returns the last part of a path, without the suffix of a GGUF file."""
  path = pathlib.Path(checkpoint).resolve()
  return path.stem if path.is_file() else path.name


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = CommandParser(
    prog="python -m instructgpt_jax.serve", description=__doc__
  )
  add = parser.add_argument
  add(
    "--checkpoint",
    required=True,
    metavar="DIR",
    help="workdir of a stage, Hugging Face directory, or GGUF file",
  )
  add(
    "--host",
    default="127.0.0.1",
    help="address to listen on (default: 127.0.0.1)",
  )
  add(
    "--port",
    type=listening.whole_number(0, 65535),
    default=8000,
    help="port to listen on; 0 chooses a free one (default: 8000)",
  )
  add(
    "--allow_remote",
    action="store_true",
    help="allow a --host that other computers can reach",
  )
  add(
    "--name",
    default="",
    help="name of the model in requests (default: the checkpoint's last part)",
  )
  add(
    "--max_batch",
    type=listening.whole_number(1, _MAX_BATCH),
    default=8,
    help="answers decoded together (default: 8)",
  )
  return parser.parse_args(argv)
