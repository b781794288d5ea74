"""The command that invites people."""

from __future__ import annotations

import argparse
import time

from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.labeling.people import invitations

_DAY = 86400.0


def invite(flags: argparse.Namespace) -> None:
  """Prints links that invite people."""
  store = store_lib.open_store(flags.store)
  try:
    for _ in range(flags.count):
      token = invitations.invite(
        store,
        flags.role,
        time.time(),
        held_out=flags.held_out,
        note=flags.note,
        seconds=flags.days * _DAY,
      )
      print(f"{flags.url.rstrip('/')}/invitation#{token}")
  finally:
    store.close()
