"""Collects labels from people: rankings, demonstrations and comparisons.

  python -m instructgpt_jax.labeling create --store=labels.db \
    --rank=answers.jsonl
  python -m instructgpt_jax.labeling serve --store=labels.db
  python -m instructgpt_jax.labeling invite --store=labels.db --count=3
  python -m instructgpt_jax.labeling agreement --store=labels.db
  python -m instructgpt_jax.labeling export --store=labels.db --to=labels

`create` writes PROJECT.json and the store. `add` adds items to both. `serve`
opens the pages at http://127.0.0.1:8765, and brings the store up to --project
first. `example` makes a project with simulated labels and serves it. COMMAND
--help lists a command's flags; docs/labeling.md explains them.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from instructgpt_jax.cli import launch
from instructgpt_jax.labeling import packages
from instructgpt_jax.labeling.commands import flags as flags_lib

# Command -> module that has its function.
_MODULES = {
  "create": "create",
  "add": "create",
  "serve": "serve",
  "example": "example",
  "invite": "people",
  "export": "results",
  "agreement": "results",
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns:
    Exit status: 0; 2 after a user error; 130 after an interrupt.
  """
  interrupted = False

  def run() -> None:
    nonlocal interrupted
    flags = flags_lib.make_parser(__doc__).parse_args(argv)
    try:
      packages.check_packages()
      _run(flags)
    except KeyboardInterrupt:
      interrupted = True

  status = launch.run_with_errors(run)
  return launch.INTERRUPTED if interrupted else status


def _run(flags: argparse.Namespace) -> None:
  # Modules of commands need the packages of the extra.
  module = importlib.import_module(f"{__package__}.{_MODULES[flags.command]}")
  getattr(module, flags.command)(flags)
