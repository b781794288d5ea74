"""One worker at a time."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
  """Holds a lock on a path against other workers."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path.with_name(f"{path.name}.lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
