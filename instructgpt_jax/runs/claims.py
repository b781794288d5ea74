"""A run's claim on its workdir, from its start to its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.runs import files, locks


@contextlib.contextmanager
def claim(
  directory: str | os.PathLike[str],
  experiment: str,
  config: Mapping[str, Any],
) -> Iterator[None]:
  """Locks a workdir for a run during the block, and writes its config.

  Where an error or an interrupt comes before anything else is written, the
  workdir is restored: the corrected command can use the same one.

  Args:
    directory: the workdir.
    experiment: as for `files.claim_workdir`.
    config: likewise.

  Raises:
    UserError: another run writes it, or it belongs to another experiment or
      another config.
  """
  with locks.lock_workdir(directory):
    begun = os.path.exists(os.path.join(directory, files.CONFIG))
    files.claim_workdir(directory, experiment, config)
    try:
      yield
    except BaseException:
      if not begun:
        files.release_workdir(directory)
      raise
