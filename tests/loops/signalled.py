"""Asks itself to end: `python -m tests.loops.signalled STEP NAME FLAGS…`.

Runs an experiment that sends itself SIGTERM when its loop has come to its
STEP-th step of this call, so that no clock decides where that is.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from instructgpt_jax.runtime import preemption

if __name__ == "__main__":
  _, step, experiment, *flags = sys.argv
  honest, left = preemption.Watch.asked, [int(step)]

  def asked(self: preemption.Watch) -> bool:
    left[0] -= 1
    if not left[0]:
      os.kill(os.getpid(), signal.SIGTERM)
    return honest(self)

  vars(preemption)["Watch"].asked = asked
  sys.argv = [experiment, *flags]
  runpy.run_module(f"experiments.{experiment}", run_name="__main__")
