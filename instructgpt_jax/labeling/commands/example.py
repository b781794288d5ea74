"""The command that makes an example, and serves it."""

from __future__ import annotations

import argparse
import pathlib
import time

from instructgpt_jax.labeling import example as example_lib
from instructgpt_jax.labeling.commands import serve, stores


def example(flags: argparse.Namespace) -> None:
  """Makes an example with simulated labels, and serves it."""
  address = serve.address_of(flags)
  example_lib.check_directory(flags.workdir)
  root = pathlib.Path(flags.workdir)
  path, world = example_lib.write_example(flags.workdir, flags.demo)
  is_new = not (root / example_lib.STORE).exists()
  store = stores.update(str(root / example_lib.STORE), path, create=True)
  try:
    if is_new:
      count = example_lib.add_labels(store, world, time.time())
      print(f"simulated labelers submitted {count} labels")
    serve.run_server(store, address, flags, ("owner", "labeler"))
  finally:
    store.close()
