"""Receives signals: `python -m tests.training.ended CASE [SECOND SIGNAL]`."""

from __future__ import annotations

import os
import signal
import sys

from instructgpt_jax.cli import launch
from instructgpt_jax.distributed import preemption


def _signal(number: int) -> None:
  os.kill(os.getpid(), number)


def nothing_to_save() -> None:
  """Receives SIGTERM outside of a loop."""
  _signal(signal.SIGTERM)
  print("still here", flush=True)


def in_a_loop() -> None:
  """Receives SIGTERM in a loop, and continues to the next step."""
  with preemption.PreemptionWatch() as watch:
    _signal(signal.SIGTERM)
    print("at the next step:", watch.requested(), flush=True)
    raise preemption.Preempted


def twice() -> None:
  """Receives a second signal while it saves."""
  with preemption.PreemptionWatch():
    _signal(signal.SIGTERM)
    print("saving", flush=True)
    _signal(int(sys.argv[2]))
    print("still here", flush=True)


def after_the_last_step() -> None:
  """Receives SIGTERM after the last step of the loop."""
  with preemption.PreemptionWatch():
    _signal(signal.SIGTERM)
  print("still here", flush=True)


CASES = {
  f.__name__: f
  for f in (nothing_to_save, in_a_loop, twice, after_the_last_step)
}


def _body() -> None:
  with preemption.exit_on_sigterm():
    CASES[sys.argv[1]]()


if __name__ == "__main__":
  sys.exit(launch.run_with_errors(_body))
