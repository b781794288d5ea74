"""The command line of `experiments.sweep`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.cli import flags, launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps import (
  arguments,
  cluster,
  collect,
  execute,
  grid,
  plan,
  preflight,
  records,
  search,
  shared,
)
from instructgpt_jax.sweeps.jobs import Job, shown

_SHARED = "--shared."


def parser(doc: str) -> argparse.ArgumentParser:
  """The sweep's own flags."""
  found = CommandParser(
    prog="python -m experiments.sweep",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = found.add_argument
  add("--experiment", required=True, help="what is run: ppo_ptx, sft, …")
  add("--workdir", required=True, help="folder of the sweep")
  add("--preset", default="", help="sizes and recipe of every run")
  add(
    "--sweep",
    default="",
    help="'field=a,b;field=log:LOW:HIGH:COUNT;seed=0..2', or names of the"
    " experiment's own sweeps, such as learning_rate",
  )
  add("--jobs", type=int, help="runs at once: 1; on a cluster all")
  add("--launcher", choices=execute.LAUNCHERS, default="local")
  add("--dry_run", action="store_true", help="only prints the commands")
  add("--search", choices=search.KINDS, help="a search instead of a grid")
  add("--trials", type=int, default=20, help="runs of a search (20)")
  add("--objective", default="", help="a number of the runs' complete.json")
  add("--direction", choices=search.DIRECTIONS, default="maximize")
  add("--search_seed", type=int, default=0, help="of a search itself (0)")
  arguments.add_slurm_flags(found)
  found.add_argument_group(
    "other flags",
    "--shared.FIELD=VALUE is one of experiments.pipeline, for the stages that\n"
    "all runs share. Any other is the experiment's, for every run.",
  )
  return found


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a command line asks for."""

  args: argparse.Namespace
  config: Any  # of every run, before anything is swept
  settings: Mapping[str, Any]  # the flags that make it
  text: str  # the sweep without names
  stages: shared.Shared | None
  module: str
  # "flags" and "shared" → the preset's value of each.
  defaults: Mapping[str, Mapping[str, Any]]

  @property
  def first(self) -> list[Job]:
    """What runs before all others."""
    return [self.stages.job] if self.stages else []

  def job(self, name: str, overrides: Mapping[str, Any]) -> Job:
    """The job of one run."""
    start = self.stages.flags if self.stages else {}
    return Job(
      name,
      self.args.experiment,
      {**self.settings, **start, **overrides},
      tuple(job.name for job in self.first),
      self.module,
    )

  @property
  def search(self) -> search.Search:
    """How to search."""
    args = self.args
    return search.Search(
      args.search,
      args.trials,
      args.objective,
      args.direction,
      args.search_seed,
    )

  @property
  def place(self) -> dict[str, Any]:
    """Where runs are run, as arguments of `execute` and `search.run`."""
    args = self.args
    return dict(
      # On a cluster 0 is no limit.
      workers=args.jobs or int(args.launcher == "local"),
      launcher=args.launcher,
      slurm=arguments.slurm_resources(args),
    )


def parse(
  argv: Sequence[str],
  load: Callable[[str], Any],
  doc: str,
  module: str,
) -> Sweep:
  """What a command line asks for; everything in it is checked."""
  args, rest = parser(doc).parse_known_args(argv)
  _check(args)
  mine = ["--" + a[len(_SHARED) :] for a in rest if a.startswith(_SHARED)]
  rest = [a for a in rest if not a.startswith(_SHARED)]
  experiment = functools.cache(lambda: _load(args.experiment, load))
  get_config = presets.EXPERIMENTS.get(args.experiment)
  preset = args.preset
  # Its module takes seconds to import, which a dry run can often do without.
  if get_config is None or not preset:
    get_config = experiment().get_config
    preset = preset or _default_preset(get_config)
  config, settings = _settings(rest, args.experiment, get_config, preset)
  text = grid.expand(args.sweep, lambda: getattr(experiment(), "sweep", dict)())
  swept = grid.fields(text)
  stages = None
  if shared.until(args.experiment, [*settings, *swept]):
    _, more = _settings(mine, "pipeline", presets.pipeline, preset, _SHARED)
    stages = shared.stages(
      args.workdir,
      args.experiment,
      settings,
      swept,
      presets.pipeline(preset),
      {name: value for name, value in more.items() if name != "preset"},
    )
  elif mine:
    raise UserError(
      "there are no shared stages: a start or data are given",
      field=mine[0].replace("--", _SHARED, 1).partition("=")[0],
      fix="leave it out",
    )
  defaults = {"flags": _values(get_config(preset))}
  if stages:
    defaults["shared"] = _values(presets.pipeline(preset))
  return Sweep(args, config, settings, text, stages, module, defaults)


def _values(config: Any) -> dict[str, Any]:
  return {name: value for name, value, _ in flags.leaves(config)}


def _load(name: str, load: Callable[[str], Any]) -> Any:
  found = load(name)
  if not hasattr(found, "get_config"):
    raise UserError(
      f"there is no experiment {name!r}",
      field="--experiment",
      fix=configs.nearest(name, presets.EXPERIMENTS)
      or f"give one of {', '.join(presets.EXPERIMENTS)}",
    )
  return found


def _default_preset(get_config: Callable[[str], Any]) -> str:
  return inspect.signature(get_config).parameters["preset"].default


def _check(args: argparse.Namespace) -> None:
  for name in ("jobs", "trials"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise UserError("starts at 1", field=f"--{name}", fix=f"give --{name}=1")
  if args.search and not args.objective:
    raise UserError(
      "is missing",
      field="--objective",
      fix="name a number of the runs' complete.json, such as accuracy.mean",
    )
  if "," in args.objective:
    raise UserError(
      f"is {args.objective!r}, but a search has one objective",
      field="--objective",
      fix=f"give --objective={args.objective.split(',')[0].strip()}",
    )
  if args.objective and not args.search:
    raise UserError(
      "is for a search", field="--objective", fix="give --search=tpe too"
    )


def _settings(
  argv: Sequence[str],
  experiment: str,
  get_config: Callable[[str], Any],
  preset: str,
  mark: str = "--",
) -> tuple[Any, dict[str, Any]]:
  """A config, and the flags that make it."""
  try:
    config, _ = flags.parse(
      [*argv, f"--preset={preset}"],
      get_config,
      experiment=experiment,
      default_preset=preset,
      runs=False,
    )
  except UserError as error:
    if error.field is None or mark == "--":
      raise
    raise UserError(
      error.problem,
      file=error.file,
      field=error.field.replace("--", mark, 1),
      fix=error.fix.replace("mean --", f"mean {mark}"),
    ) from error
  usual = _values(get_config(preset))
  changed = {
    name: value
    for name, value in _values(config).items()
    if value != usual[name]
  }
  return config, {"preset": preset, **changed}


def run(sweep: Sweep) -> int:
  """Runs a sweep; the exit status, which is 1 if some run failed."""
  args = sweep.args
  space, chosen = {}, {}
  if args.search:
    space = grid.space(sweep.text, sweep.config)
  else:
    chosen = grid.runs(sweep.text, sweep.config)
  jobs = [sweep.job(name, values) for name, values in chosen.items()]
  checked = jobs or _corners(sweep, space)
  preflight.check(checked, sweep.config, args.workdir, numbers=not args.search)
  if args.dry_run:
    for number, values in enumerate(
      search.preview(sweep.search, space) if args.search else ()
    ):
      chosen[search.trial_name(number)] = values
    _show(sweep, [sweep.job(name, values) for name, values in chosen.items()])
    return 0
  inputs = preflight.fingerprints(checked, sweep.config, args.workdir)
  _begin(sweep, chosen, inputs)
  if args.search:
    outcome = _search(sweep, space)
  else:
    outcome = execute.execute(
      [*sweep.first, *jobs], args.workdir, **sweep.place
    )
  return _report(sweep, outcome)


def _corners(sweep: Sweep, space: Mapping[str, Any]) -> list[Job]:
  """Returns a search's jobs with one value of a list changed at a time.

  Their combinations are not known in advance.
  """
  jobs = [sweep.job("trials", {})]
  listed = [
    (field, value)
    for field, part in space.items()
    if isinstance(part, grid.Choices)
    for value in part.values
  ]
  jobs += [
    sweep.job(f"{field}={number}", {field: value})
    for number, (field, value) in enumerate(listed)
    if isinstance(value, str)
  ]
  return jobs


def _begin(
  sweep: Sweep,
  chosen: Mapping[str, Mapping[str, Any]],
  inputs: Mapping[str, str],
) -> None:
  """Writes sweep.json."""
  args = sweep.args
  head = {
    "experiment": args.experiment,
    "kind": args.search or "grid",
    "flags": dict(sweep.settings),
    "shared": dict(sweep.stages.job.flags) if sweep.stages else {},
  }
  if args.search:
    head |= {
      "space": sweep.text,
      "direction": args.direction,
      "search_seed": args.search_seed,
    }
  entries = [{"name": n, "overrides": dict(o)} for n, o in chosen.items()]
  plan.begin(args.workdir, head, entries, sweep.defaults, inputs)


def _search(sweep: Sweep, space: Any) -> execute.Outcome:
  """The shared stages, by one worker while the others wait; then trials."""
  root = sweep.args.workdir
  with search.joined(root, sweep.search, space, sweep.job) as trials:
    if sweep.first:
      before = execute.execute(
        sweep.first, root, title="shared", wait=True, **sweep.place
      )
      if before.failed:
        return before
    return search.run_trials(trials, **sweep.place)


def _show(sweep: Sweep, jobs: Sequence[Job]) -> None:
  """Prints the commands, in an order in which they work by hand."""
  args = sweep.args
  for job in [*sweep.first, *jobs]:
    print(shown(job.command(args.workdir)))
  if args.search and len(jobs) < args.trials:
    print(f"# {args.trials - len(jobs)} more, which depend on these results")
  if args.launcher == "slurm":
    name = jobs[0].name
    print(f"\n# {name} as sbatch is given it; the others are alike")
    print(cluster.batch_script(args.workdir, sweep.place["slurm"], name))


def _report(sweep: Sweep, outcome: execute.Outcome) -> int:
  """Writes and prints the results; the exit status."""
  args, root = sweep.args, sweep.args.workdir
  path = collect.write_csv(root)
  found = collect.rows(root)
  first = [args.objective] if args.search else []
  if args.search:
    found = [row for row in found if row["run"] in outcome.done]
    found.sort(
      key=functools.partial(_value, sweep),
      reverse=args.direction == "maximize",
    )
  print(collect.table(found, first))
  print(f"results: {path}")
  for name, text in outcome.failed.items():
    print(f"failed: {name}, {records.log_path(root, name)}", file=sys.stderr)
    for line in text.splitlines():
      print(f"  {line}", file=sys.stderr)
  for name, need in outcome.skipped.items():
    print(f"skipped: {name}, which needs {need}", file=sys.stderr)
  return int(bool(outcome.failed or outcome.skipped))


def _value(sweep: Sweep, row: Mapping[str, Any]) -> float:
  """Returns the objective of a row's run, which is complete."""
  folder = os.path.join(sweep.args.workdir, *row["run"].split("/"))
  value = search.objective(sweep.search, folder)
  return math.nan if value is None else value


def main(
  argv: Sequence[str],
  load: Callable[[str], Any],
  *,
  doc: str = "",
  module: str = "experiments",
) -> int:
  """Runs a sweep from its command line.

  Args:
    argv: the arguments.
    load: an experiment's name → its module, or None.
    doc: what `--help` begins with.
    module: the package of the experiments.

  Returns:
    The exit status: 1 if some run failed, 2 after a user's mistake; 0 also
    after SIGTERM.
  """
  statuses: list[int] = []

  def body() -> None:
    statuses.append(run(parse(argv, load, doc, module)))

  return launch.run_with_errors(body) or next(iter(statuses), 0)
