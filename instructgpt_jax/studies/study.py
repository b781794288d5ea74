"""Defines a study, its runs and its results so far."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.report.findings import Figure, Table
from instructgpt_jax.report.results import mapping
from instructgpt_jax.runs import files
from instructgpt_jax.studies import scale as scale_lib
from instructgpt_jax.studies.scale import Scale
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.sweeps.jobs import Job

PAPER, OURS = "paper", "ours"
_SIZE_FILE = "study.json"
TITLE = "InstructGPT's findings in a small world"
TAKEN = "From an earlier run of the studies."


@dataclasses.dataclass(frozen=True)
class Finding:
  """Conclusion of a study.

  Attributes:
    reproduced: whether the criterion holds; None if there is none.
    measured: one sentence with the decisive numbers.
    figures: ours beside the paper's.
    tables: the numbers with intervals.
    notes: caveats.
  """

  reproduced: bool | None
  measured: str
  figures: Sequence[Figure] = ()
  tables: Sequence[Table] = ()
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Study:
  """A question about the paper's method, and the runs that answer it.

  Attributes:
    name: name of its file, and in `make study STUDY=…`.
    title: short title.
    question: one sentence.
    source: section and figure of arXiv:2203.02155.
    paper: what the paper varied, measured and found.
    setup: our grid in the world, and our measurements.
    criterion: condition for "reproduced"; fixed before the runs.
    jobs: runs of one seed → its jobs.
    analyse: runs of the complete seeds → finding.
    kind: PAPER, or OURS if the paper makes no such claim.
    max_seeds: largest number of seeds, where runs are long; None has no limit.
  """

  name: str
  title: str
  question: str
  source: str
  paper: str
  setup: str
  criterion: str
  jobs: Callable[[SeedRuns], Sequence[Job]]
  analyse: Callable[[Sequence[SeedRuns]], Finding]
  kind: str = PAPER
  max_seeds: int | None = None

  def seed_runs(self, scale: Scale, root: str) -> list[SeedRuns]:
    """Returns the runs of each seed that the study uses."""
    seeds = scale.seeds[: self.max_seeds]
    return [SeedRuns(scale, seed, root) for seed in seeds]


def all_jobs(studies: Sequence[Study], scale: Scale, root: str) -> list[Job]:
  """Lists every run of the studies once; shared stages come first."""
  by_study = [(study, study.seed_runs(scale, root)) for study in studies]
  jobs = {
    runs.shared_job.name: runs.shared_job
    for _, seeds in by_study
    for runs in seeds
  }
  for study, seeds in by_study:
    for runs in seeds:
      jobs |= {job.name: job for job in study.jobs(runs)}
  return list(jobs.values())


def collect_results(
  studies: Sequence[Study],
  scale: Scale,
  root: str,
  seconds: Mapping[str, float],
  machine: str = "",
) -> dict[str, Any]:
  """Collects what `report.study_page` shows, from the complete runs.

  Args:
    studies: in the order of the page.
    scale: size of the studies.
    root: directory of the runs.
    seconds: duration of each run.
    machine: description of the machine.
  """
  collected = {s.name: _collect_study(s, scale, root, seconds) for s in studies}
  verdict_keys = (
    "title", "reproduced", "criterion", "measured", "paper", "seeds",
    "seconds", "kind",
  )  # fmt: skip
  return {
    "title": TITLE,
    "where": "in a world of 300 words",
    "size": scale.name,
    "command": "make study",
    "machine": machine,
    "seconds": sum(seconds.values()),
    "verdicts": {
      name: {key: study[key] for key in verdict_keys}
      for name, study in collected.items()
    },
    "studies": collected,
  }


def add_earlier(
  results: Mapping[str, Any], earlier: Mapping[str, Any], path: str
) -> tuple[dict[str, Any], list[str]]:
  """Takes the studies that are not complete from an earlier page's results.

  Args:
    results: of `collect_results`.
    earlier: of an earlier page, as `results.json` stores them.
    path: path of `earlier`.

  Returns:
    The results, and the names of the studies that are taken. The time of all
    runs is left out where studies are taken, as they may share runs.

  Raises:
    UserError: `other_size` or `bad_results`.
  """
  studies, verdicts = (
    mapping(mapping(earlier).get(group)) for group in ("studies", "verdicts")
  )
  if not studies:
    raise UserError(
      "has no studies",
      file=path,
      field="--earlier",
      fix="give the results.json beside a page of studies",
      code="bad_results",
    )
  if earlier.get("size") != results["size"]:
    raise UserError(
      f"has the size {earlier.get('size')!r}, and the runs {results['size']!r}",
      file=path,
      field="--earlier",
      fix="give the results.json of studies of the same size",
      code="other_size",
    )
  taken = [
    name
    for name, study in results["studies"].items()
    if not study["complete"]
    and mapping(studies.get(name)).get("complete")
    and name in verdicts
  ]
  merged = {
    group: {**results[group], **{name: source[name] for name in taken}}
    for group, source in (("studies", studies), ("verdicts", verdicts))
  }
  if not taken:
    return dict(results), taken
  for name in taken:
    notes = [n for n in merged["studies"][name].get("notes", ()) if n != TAKEN]
    merged["studies"][name] = merged["studies"][name] | {
      "notes": [*notes, TAKEN]
    }
  machines = f"{results['machine']}; {earlier.get('machine') or ''}"
  machine = "; ".join(dict.fromkeys(filter(None, machines.split("; "))))
  return {**results, **merged, "seconds": None, "machine": machine}, taken


def _collect_study(
  study: Study, scale: Scale, root: str, seconds: Mapping[str, float]
) -> dict[str, Any]:
  seeds = study.seed_runs(scale, root)
  jobs = {f.seed: {j.name: j for j in study.jobs(f)} for f in seeds}
  missing = [
    name
    for of_seed in jobs.values()
    for name, job in of_seed.items()
    if files.read_complete(job.workdir(root)) is None
  ]
  complete = [f for f in seeds if not set(jobs[f.seed]) & set(missing)]
  finding = Finding(None, "No seed's runs are complete yet.")
  if complete:
    finding = study.analyse(complete)
  names = [name for of_seed in jobs.values() for name in of_seed]
  return {
    "title": study.title,
    "question": study.question,
    "source": study.source,
    "paper": study.paper,
    "setup": study.setup,
    "criterion": study.criterion,
    "measured": finding.measured,
    "reproduced": None if missing else finding.reproduced,
    "kind": study.kind,
    "command": f"make study STUDY={study.name}",
    "seeds": [f.seed for f in complete],
    "seconds": sum(seconds.get(name, 0.0) for name in names),
    "runs": len(names),
    "complete": not missing,
    "missing": len(missing),
    "figures": [figure.as_dict() for figure in finding.figures],
    "tables": [table.as_dict() for table in finding.tables],
    "notes": list(finding.notes),
  }


def read_seconds(root: str) -> dict[str, float]:
  """Reads the duration of each run, which the executor records."""
  path = os.path.join(root, "seconds.json")
  return files.read_json(path) if os.path.exists(path) else {}


def lock_size(root: str, scale: Scale) -> None:
  """Records the size in the directory; refuses a directory of another size.

  Seeds may be added to those of the directory.

  Raises:
    UserError: `other_size`.
  """
  path = os.path.join(root, _SIZE_FILE)
  if os.path.exists(path):
    recorded = read_size(root)
    before = recorded.name, recorded.seeds
    if before != (scale.name, scale.seeds[: len(recorded.seeds)]):
      raise UserError(
        f"contains size {recorded.name!r} with seeds {recorded.seeds}, not"
        f" {scale.name!r} with {scale.seeds}",
        file=root,
        fix="choose another --workdir, or add seeds to the end of the list",
        code="other_size",
      )
  files.write_json_atomic(
    path, {"size": scale.name, "seeds": list(scale.seeds)}
  )


def read_size(root: str) -> Scale:
  """Reads the size of a directory's studies."""
  path = os.path.join(root, _SIZE_FILE)
  fix = "use the --workdir of python -m experiments.study"
  recorded = files.read_json(path, fix=fix)
  try:
    return dataclasses.replace(
      scale_lib.get_scale(recorded["size"]),
      seeds=tuple(map(int, recorded["seeds"])),
    )
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      "is not a study's size file", file=path, fix=fix, code="bad_study_file"
    ) from error
