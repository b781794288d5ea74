"""Writes checksums for a model that has none.

  python -m instructgpt_jax.checkpoint.accept WORKDIR

A stage refuses to start from a model without checksums.json, because it could
not detect damage. This command accepts the model as it is on the disk, for
example after its checksums.json has been lost.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from instructgpt_jax import streams
from instructgpt_jax.checkpoint import checkpoints, manifest, storage
from instructgpt_jax.errors import UserError


def accept(directory: str | pathlib.Path) -> pathlib.Path:
  """Writes the checksums of a stage's model.

  Args:
    directory: workdir of a stage.

  Returns:
    The model's directory.

  Raises:
    UserError: there is no model, it cannot be read, or it has checksums.
  """
  model = pathlib.Path(directory).absolute() / checkpoints.MODEL
  if not model.is_dir():
    raise UserError(
      "has no trained model",
      file=str(directory),
      fix="use the --workdir of a stage that has finished",
      code="no_model",
    )
  if (model / manifest.MANIFEST).exists():
    raise UserError(
      f"has a {manifest.MANIFEST} already",
      file=str(model),
      fix="leave the model unchanged",
      code="has_checksums",
    )
  storage.load_values(model)
  manifest.write(model)
  return model


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  streams.accept_all_text()
  arguments = sys.argv[1:] if argv is None else list(argv)
  try:
    if len(arguments) != 1 or arguments[0].startswith("-"):
      raise UserError(
        "exactly one workdir is needed",
        fix="python -m instructgpt_jax.checkpoint.accept WORKDIR",
        code="bad_arguments",
      )
    model = accept(arguments[0])
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{model}: {manifest.MANIFEST} written", file=sys.stderr)
  return 0


if __name__ == "__main__":
  sys.exit(main())
