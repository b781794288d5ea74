"""Runs a command that dies with its parent, pinned to some cores.

  python -I child.py PARENT CORES COMMAND...

This is a script, not a function called between fork and exec: in a process with
threads that is not safe, and JAX warns about it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
  """Replaces this process by the command; does not return."""
  parent, cores, *command = arguments
  # Slurm signals every process of a job before its time limit. Submitit's own
  # process, which waits for this one, handles the signal.
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
