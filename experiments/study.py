"""Reproduces the paper's findings in the embedded world, on one page.

  python -m experiments.study --workdir=runs/study
  python -m experiments.study --workdir=runs/study --study=ptx_coef --jobs=2

Runs what is missing: an interrupted call resumes when it is repeated. Studies
share runs. Writes index.html with the verdicts, and results.json.

Cost: 1,143 runs. The 900 of the eleven studies with five seeds take 3 h 55 min
in total, 2 h 10 min with --jobs=2 on two cores; reward_limits takes 4 h 35 min
and model_size 3 h 8 min in total, with the runs that they share.
Result: seven of the paper's ten findings reproduce (docs/results.md).
"""

import argparse
import os
import sys
from collections.abc import Sequence

from experiments import report, studies
from instructgpt_jax import configs
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.studies import scale as scale_lib
from instructgpt_jax.studies import study as study_lib
from instructgpt_jax.sweeps import arguments as arguments_lib
from instructgpt_jax.sweeps import execute, jobs


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line."""
  parser = CommandParser(
    prog="python -m experiments.study",
    description=__doc__,
    epilog="studies:\n"
    + "\n".join(f"  {s.name:18}{s.title}" for s in studies.ALL.values()),
  )
  add = parser.add_argument
  add("--workdir", required=True, help="directory of runs and page")
  add("--study", default="all", help="comma list of studies, or all")
  add(
    "--size",
    default="mini",
    help=f"how large: {', '.join(scale_lib.SCALES)}",
  )
  add("--seeds", default="", help="comma list; the size's own by default")
  add(
    "--jobs",
    type=int,
    default=0,
    help="runs at a time; 0 is one a core, and on a cluster all that are ready",
  )
  add("--launcher", default="local", choices=execute.LAUNCHERS)
  add("--dry_run", action="store_true", help="print the commands")
  arguments_lib.add_slurm_flags(parser)
  return parser.parse_args(argv)


def chosen(names: str) -> list[study_lib.Study]:
  """Returns the studies that a comma-separated list names."""
  if names == "all":
    return list(studies.ALL.values())
  selected = []
  for name in names.split(","):
    if name not in studies.ALL:
      raise UserError(
        f"there is no study {name!r}",
        field="--study",
        fix=configs.nearest(name, studies.ALL)
        or f"give names out of {', '.join(studies.ALL)}",
        code="unknown_study",
      )
    selected.append(studies.ALL[name])
  return selected


def scaled(size: str, seeds: str) -> scale_lib.Scale:
  """Returns the scale of a size, with other seeds where `seeds` names them."""
  return scale_lib.with_seeds(scale_lib.get_scale(size), seeds)


def run(arguments: argparse.Namespace) -> int:
  """Runs the missing jobs and writes the page.

  Returns:
    The exit status: 1 if a run failed.
  """
  selected = chosen(arguments.study)
  scale = scaled(arguments.size, arguments.seeds)
  todo = study_lib.all_jobs(selected, scale, arguments.workdir)
  if arguments.dry_run:
    for job in todo:
      print(jobs.shell_line(job.command(arguments.workdir)))
    return 0
  study_lib.lock_size(arguments.workdir, scale)
  outcome = execute.run_jobs(
    todo,
    arguments.workdir,
    workers=arguments.jobs
    or (len(os.sched_getaffinity(0)) if arguments.launcher == "local" else 0),
    launcher=arguments.launcher,
    slurm=arguments_lib.slurm_resources(arguments),
    title="study",
  )
  report.build(arguments.workdir)
  return 1 if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns the exit status; 2 for a user error."""
  statuses: list[int] = []
  status = launch.run_with_errors(lambda: statuses.append(run(parse(argv))))
  return status or next(iter(statuses), 0)


if __name__ == "__main__":
  sys.exit(main())
