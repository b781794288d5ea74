"""Becomes another command, which dies with its parent and has its own cores.

  python -I child.py PARENT CORES COMMAND...

A script of its own rather than a function called between fork and exec: that is
not safe in a process with threads, and JAX warns of it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
  """Does not return."""
  parent, cores, *command = arguments
  # Slurm tells every process of a job that its time is nearly up; submitit's
  # own, which waits for this one, is the one to act.
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
      sys.exit("the parent has ended")
    if cores:
      os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
  os.execv(command[0], command)


if __name__ == "__main__":
  main(sys.argv[1:])
