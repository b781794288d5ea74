"""Command line of `experiments.sweep`."""

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
  preflight,
  records,
  search,
  shared,
  summary,
  sweep_file,
)
from instructgpt_jax.sweeps.jobs import Job, shell_line

_SHARED = "--shared."


def make_parser(doc: str) -> argparse.ArgumentParser:
  """Returns the parser of the sweep's own flags."""
  parser = CommandParser(
    prog="python -m experiments.sweep",
    description=doc,
  )
  add = parser.add_argument
  add(
    "--experiment",
    required=True,
    help="experiment of every run: ppo_ptx, sft, …",
  )
  add("--workdir", required=True, help="directory of the sweep")
  add("--preset", default="", help="preset of every run")
  add(
    "--sweep",
    default="",
    help="'field=a,b;field=log:LOW:HIGH:COUNT;seed=0..2', or names of the"
    " experiment's own sweeps, such as learning_rate",
  )
  add("--jobs", type=int, help="runs at once (1; on a cluster all)")
  add("--launcher", choices=execute.LAUNCHERS, default="local")
  add("--dry_run", action="store_true", help="print the commands only")
  add("--search", choices=search.KINDS, help="search instead of a grid")
  add(
    "--trials", type=int, default=20, help="number of trials of a search (20)"
  )
  add("--objective", default="", help="number in the runs' complete.json")
  add("--direction", choices=search.DIRECTIONS, default="maximize")
  add(
    "--search_seed", type=int, default=0, help="seed of the search itself (0)"
  )
  arguments.add_slurm_flags(parser)
  parser.add_argument_group(
    "other flags",
    "--shared.FIELD=VALUE sets a field of experiments.pipeline for the shared\n"
    "stages. All other flags are the experiment's, for every run.",
  )
  return parser


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Parsed command line of a sweep.

  Attributes:
    args: the sweep's own flags.
    config: config of every run before fields are swept.
    settings: the flags that make this config.
    axes: value of --sweep with names expanded.
    shared: stages that all runs share.
    module: package of the experiments.
    defaults: "flags" and "shared" → the preset's value of each field.
  """

  args: argparse.Namespace
  config: Any
  settings: Mapping[str, Any]
  axes: str
  shared: shared.SharedStages | None
  module: str
  defaults: Mapping[str, Mapping[str, Any]]

  @property
  def shared_jobs(self) -> list[Job]:
    """Returns the job of the shared stages, if there are any."""
    return [self.shared.job] if self.shared else []

  def make_job(self, name: str, overrides: Mapping[str, Any]) -> Job:
    """Returns the job of one run."""
    start = self.shared.flags if self.shared else {}
    return Job(
      name,
      self.args.experiment,
      {**self.settings, **start, **overrides},
      tuple(job.name for job in self.shared_jobs),
      self.module,
    )

  @property
  def search(self) -> search.Search:
    """Returns the settings of the search."""
    args = self.args
    return search.Search(
      args.search,
      args.trials,
      args.objective,
      args.direction,
      args.search_seed,
    )

  @property
  def launch_options(self) -> dict[str, Any]:
    """Returns the launcher's settings, as keyword arguments."""
    args = self.args
    return dict(
      # On a cluster, 0 means no limit.
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
  """Parses and checks a command line."""
  args, rest = make_parser(doc).parse_known_args(argv)
  _check_arguments(args)
  shared_flags = [
    "--" + a[len(_SHARED) :] for a in rest if a.startswith(_SHARED)
  ]
  rest = [a for a in rest if not a.startswith(_SHARED)]
  experiment = functools.cache(lambda: _load_experiment(args.experiment, load))
  get_config = presets.EXPERIMENTS.get(args.experiment)
  preset = args.preset
  # A dry run can often avoid importing the module, which takes seconds.
  if get_config is None or not preset:
    get_config = experiment().get_config
    preset = preset or _default_preset(get_config)
  config, settings = _parse_flags(rest, args.experiment, get_config, preset)
  text = grid.expand_names(
    args.sweep, lambda: getattr(experiment(), "sweep", dict)()
  )
  swept = grid.swept_fields(text)
  stages = None
  if shared.last_shared_stage(args.experiment, [*settings, *swept]):
    _, more = _parse_flags(
      shared_flags, "pipeline", presets.pipeline, preset, _SHARED
    )
    stages = shared.shared_stages(
      args.workdir,
      args.experiment,
      settings,
      swept,
      presets.pipeline(preset),
      {name: value for name, value in more.items() if name != "preset"},
    )
  elif shared_flags:
    raise UserError(
      "there are no shared stages, because a start or data are set",
      field=shared_flags[0].replace("--", _SHARED, 1).partition("=")[0],
      fix="leave it out",
      code="no_shared_stages",
    )
  defaults = {"flags": _field_values(get_config(preset))}
  if stages:
    defaults["shared"] = _field_values(presets.pipeline(preset))
  return Sweep(args, config, settings, text, stages, module, defaults)


def _field_values(config: Any) -> dict[str, Any]:
  return {name: value for name, value, _ in flags.leaves(config)}


def _load_experiment(name: str, load: Callable[[str], Any]) -> Any:
  module = load(name)
  if not hasattr(module, "get_config"):
    raise UserError(
      f"there is no experiment {name!r}",
      field="--experiment",
      fix=configs.nearest(name, presets.EXPERIMENTS)
      or f"give one of {', '.join(presets.EXPERIMENTS)}",
      code="unknown_experiment",
    )
  return module


def _default_preset(get_config: Callable[[str], Any]) -> str:
  return inspect.signature(get_config).parameters["preset"].default


def _check_arguments(args: argparse.Namespace) -> None:
  for name in ("jobs", "trials"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise UserError(
        "must be at least 1",
        field=f"--{name}",
        fix=f"give --{name}=1",
        code="not_positive",
      )
  if args.search and not args.objective:
    raise UserError(
      "is missing",
      field="--objective",
      fix="name a number of the runs' complete.json, such as accuracy.mean",
      code="missing_objective",
    )
  if "," in args.objective:
    raise UserError(
      f"is {args.objective!r}, but a search has one objective",
      field="--objective",
      fix=f"give --objective={args.objective.split(',')[0].strip()}",
      code="several_objectives",
    )
  if args.objective and not args.search:
    raise UserError(
      "needs a search",
      field="--objective",
      fix="add --search=tpe",
      code="objective_without_search",
    )


def _parse_flags(
  argv: Sequence[str],
  experiment: str,
  get_config: Callable[[str], Any],
  preset: str,
  prefix: str = "--",
) -> tuple[Any, dict[str, Any]]:
  """Returns a config and the flags that make it."""
  try:
    config, _ = flags.parse(
      [*argv, f"--preset={preset}"],
      get_config,
      experiment=experiment,
      default_preset=preset,
      runs=False,
    )
  except UserError as error:
    if error.field is None or prefix == "--":
      raise
    raise UserError(
      error.problem,
      file=error.file,
      field=error.field.replace("--", prefix, 1),
      fix=error.fix.replace("mean --", f"mean {prefix}"),
      code=error.code,
    ) from error
  defaults = _field_values(get_config(preset))
  changed = {
    name: value
    for name, value in _field_values(config).items()
    if value != defaults[name]
  }
  return config, {"preset": preset, **changed}


def run(sweep: Sweep) -> int:
  """Runs a sweep; returns exit status 1 if a run failed."""
  args = sweep.args
  space, runs = {}, {}
  if args.search:
    space = grid.search_space(sweep.axes, sweep.config)
  else:
    runs = grid.grid_runs(sweep.axes, sweep.config)
  jobs = [sweep.make_job(name, values) for name, values in runs.items()]
  checked = jobs or _single_changes(sweep, space)
  preflight.check_runs(
    checked, sweep.config, args.workdir, numbers=not args.search
  )
  if args.dry_run:
    for number, values in enumerate(
      search.preview_trials(sweep.search, space) if args.search else ()
    ):
      runs[search.trial_name(number)] = values
    _print_commands(
      sweep, [sweep.make_job(name, values) for name, values in runs.items()]
    )
    return 0
  inputs = preflight.fingerprints(checked, sweep.config, args.workdir)
  _write_sweep(sweep, runs, inputs)
  if args.search:
    outcome = _search(sweep, space)
  else:
    outcome = execute.run_jobs(
      [*sweep.shared_jobs, *jobs], args.workdir, **sweep.launch_options
    )
  return _report_results(sweep, outcome)


def _single_changes(sweep: Sweep, space: Mapping[str, Any]) -> list[Job]:
  """Returns jobs that each set one value of a search's lists.

  The combinations of a search are not known in advance.
  """
  jobs = [sweep.make_job("trials", {})]
  listed = [
    (field, value)
    for field, part in space.items()
    if isinstance(part, grid.Choices)
    for value in part.values
  ]
  jobs += [
    sweep.make_job(f"{field}={number}", {field: value})
    for number, (field, value) in enumerate(listed)
    if isinstance(value, str)
  ]
  return jobs


def _write_sweep(
  sweep: Sweep,
  runs: Mapping[str, Mapping[str, Any]],
  inputs: Mapping[str, str],
) -> None:
  """Writes sweep.json."""
  args = sweep.args
  head = {
    "experiment": args.experiment,
    "kind": args.search or "grid",
    "flags": dict(sweep.settings),
    "shared": dict(sweep.shared.job.flags) if sweep.shared else {},
  }
  if args.search:
    head |= {
      "space": sweep.axes,
      "direction": args.direction,
      "search_seed": args.search_seed,
    }
  entries = [{"name": n, "overrides": dict(o)} for n, o in runs.items()]
  sweep_file.write_sweep(args.workdir, head, entries, sweep.defaults, inputs)


def _search(sweep: Sweep, space: Any) -> execute.Outcome:
  """Runs the shared stages in one worker while others wait, then trials."""
  root = sweep.args.workdir
  with search.join_search(root, sweep.search, space, sweep.make_job) as trials:
    if sweep.shared_jobs:
      shared_outcome = execute.run_jobs(
        sweep.shared_jobs,
        root,
        title="shared",
        wait=True,
        **sweep.launch_options,
      )
      if shared_outcome.failed:
        return shared_outcome
    return search.run_trials(trials, **sweep.launch_options)


def _print_commands(sweep: Sweep, jobs: Sequence[Job]) -> None:
  """Prints the commands in an order that respects dependencies."""
  args = sweep.args
  for job in [*sweep.shared_jobs, *jobs]:
    print(shell_line(job.command(args.workdir)))
  if args.search and len(jobs) < args.trials:
    print(
      f"# {args.trials - len(jobs)} more, which depend on the results of these"
    )
  if args.launcher == "slurm":
    name = jobs[0].name
    print(f"\n# batch script of {name}; the others are similar")
    print(
      cluster.batch_script(args.workdir, sweep.launch_options["slurm"], name)
    )


def _report_results(sweep: Sweep, outcome: execute.Outcome) -> int:
  """Prints and draws the results; returns the exit status."""
  args, root = sweep.args, sweep.args.workdir
  path = collect.write_csv(root)
  rows = collect.read_rows(root)
  first = [args.objective] if args.search else []
  if args.search:
    rows = [row for row in rows if row["run"] in outcome.done]
    rows.sort(
      key=functools.partial(_objective_of, sweep),
      reverse=args.direction == "maximize",
    )
  print(collect.format_table(rows, first))
  _summarize(sweep, rows)
  print(f"results: {path}")
  for name, text in outcome.failed.items():
    print(f"failed: {name}, {records.log_path(root, name)}", file=sys.stderr)
    for line in text.splitlines():
      print(f"  {line}", file=sys.stderr)
  for name, need in outcome.skipped.items():
    print(f"skipped: {name}, which needs {need}", file=sys.stderr)
  return int(bool(outcome.failed or outcome.skipped))


def _summarize(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes the picture, and the means over seeds if seeds are swept."""
  args, root = sweep.args, sweep.args.workdir
  swept = grid.swept_fields(sweep.axes)
  groups = summary.group_by_settings(rows, swept)
  first = [args.objective] if args.search else []
  metrics = summary.choose_metrics(groups, first)
  if summary.has_seeds(rows, swept):
    print("\nmeans over seeds with 95 % intervals")
    print(collect.format_table(summary.text_rows(groups, metrics)))
    print(f"means: {summary.write_means(root, groups)}")
  picture = summary.draw(root, groups, metrics, connect=not args.search)
  if picture:
    print(f"picture: {picture}")


def _objective_of(sweep: Sweep, row: Mapping[str, Any]) -> float:
  """Returns the objective of a row's run, which is complete."""
  workdir = os.path.join(sweep.args.workdir, *row["run"].split("/"))
  value = search.read_objective(sweep.search, workdir)
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
    load: returns an experiment's module, or None.
    doc: first lines of `--help`.
    module: package of the experiments.

  Returns:
    The exit status: 1 if a run failed, 2 after a user error; 0 also after
    SIGTERM.
  """
  statuses: list[int] = []

  def body() -> None:
    statuses.append(run(parse(argv, load, doc, module)))

  return launch.run_with_errors(body) or next(iter(statuses), 0)
