"""Lets an event happen at a step of an experiment.

  python -m tests.training.at_step STEP WHAT NAME FLAGS...

The event WHAT happens at the STEP-th step of this call, independent of time.
"""

from __future__ import annotations

import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable

from instructgpt_jax.distributed import preemption

AWAY = ".away"


def sigterm(workdir: str) -> None:
  """Sends SIGTERM to this process."""
  del workdir
  os.kill(os.getpid(), signal.SIGTERM)


def vanish(workdir: str) -> None:
  """Removes the workdir, as when its disk disappears."""
  os.rename(workdir, workdir + AWAY)


def full(workdir: str) -> None:
  """Simulates a full disk: no file may grow."""
  del workdir
  resource.setrlimit(resource.RLIMIT_FSIZE, (1, -1))


EVENTS: dict[str, Callable[[str], None]] = {
  f.__name__: f for f in (sigterm, vanish, full)
}

if __name__ == "__main__":
  _, step, what, experiment, *flags = sys.argv
  (workdir,) = (f[10:] for f in flags if f.startswith("--workdir="))
  original, remaining = preemption.PreemptionWatch.requested, [int(step)]

  def requested(self: preemption.PreemptionWatch) -> bool:
    remaining[0] -= 1
    if not remaining[0]:
      EVENTS[what](workdir)
    return original(self)

  vars(preemption)["PreemptionWatch"].requested = requested
  sys.argv = [experiment, *flags]
  runpy.run_module(f"experiments.{experiment}", run_name="__main__")
