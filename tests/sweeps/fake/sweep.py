"""Command line of a sweep of this package's fake experiments."""

import importlib
import importlib.util
import sys

from instructgpt_jax.sweeps import command

MODULE = "tests.sweeps.fake"


def load(name):
  module = f"{MODULE}.{name}"
  if importlib.util.find_spec(module) is None:
    return None
  return importlib.import_module(module)


def main(*argv):
  return command.main(argv, load, doc="Doc.", module=MODULE)


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
