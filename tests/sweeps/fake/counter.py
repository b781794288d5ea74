"""Counts slowly to a number, and resumes.

A fake experiment: it claims its config, keeps a checkpoint, resumes after it
was killed, and fails if asked to.
"""

import dataclasses
import os
import pathlib
import sys
import time

from instructgpt_jax.cli import launch
from instructgpt_jax.configs import Checked, option
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section(Checked):
  """Swept fields."""

  rate: float = option(0.1, "a number", above=0.0)
  size: int = option(1, "a whole number", minimum=1)
  kind: str = option("plain", "a text")
  loud: bool = option(False, "a switch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counter(Checked):
  """Config of a counter."""

  seed: int = option(0, "of nothing", minimum=0)
  steps: int = option(1, "how far to count", minimum=0)
  wait: float = option(0.0, "seconds a step", minimum=0.0)
  gate: str = option("", "file without which it stays at 3")
  fail: str = option("", "error, exit, or mistake")
  init_from: str = option("", "workdir of another counter")
  section: Section = Section()


def get_config(preset: str = "small") -> Counter:
  """Returns a preset: `small` counts to 1, `large` to 3."""
  if preset not in ("small", "large"):
    raise UserError(
      "there is no such preset",
      field="--preset",
      fix="give small",
      code="unknown_preset",
    )
  return Counter(steps=1 if preset == "small" else 3)


def sweep() -> dict[str, str]:
  """Returns a named sweep."""
  return {"rates": "section.rate=0.1,0.2", "seeds": "seed=0..2"}


def run(config: Counter, workdir: str) -> None:
  directory = pathlib.Path(workdir)
  if files.read_complete(directory) is not None:
    return
  if config.fail == "mistake":
    raise UserError("that is wrong", field="fail", fix="give none")
  if config.init_from and files.read_complete(config.init_from) is None:
    raise UserError("is not complete", file=config.init_from)
  checkpoint = directory / "count.json"
  count = files.read_json(checkpoint) if checkpoint.exists() else 0
  # One line for each time that it was started: (process, count, cores).
  with open(directory / "starts.txt", "a") as file:
    cores = ",".join(str(c) for c in sorted(os.sched_getaffinity(0)))
    file.write(f"{os.getpid()} {count} {cores}\n")
  while count < config.steps:
    time.sleep(config.wait)
    count += 1
    files.write_json_atomic(checkpoint, count)
    print(f"count {count}")
    while count == 3 and config.gate and not os.path.exists(config.gate):
      time.sleep(0.02)
  if config.fail == "error":
    raise RuntimeError("it broke")
  if config.fail == "exit":
    sys.exit(0)
  section = config.section
  score = -((section.rate - 0.3) ** 2) * section.size
  files.mark_complete(
    workdir,
    {"count": count, "score": {"mean": score, "low": score - 1}, "text": "x"},
  )


if __name__ == "__main__":
  sys.exit(
    launch.main("counter", get_config, run, __doc__, default_preset="small")
  )
