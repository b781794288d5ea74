"""What a study is, which runs it needs, and what is known of it so far."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.report.findings import Figure, Table
from instructgpt_jax.runs import files
from instructgpt_jax.studies import scale as scale_lib
from instructgpt_jax.studies.family import Family
from instructgpt_jax.studies.scale import Scale
from instructgpt_jax.sweeps.jobs import Job

PAPER, OURS = "paper", "ours"
_SCALE = "study.json"
TITLE = "InstructGPT's findings in a small world"


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a study's runs say.

  Attributes:
    reproduced: whether the criterion holds; None where there is none.
    measured: one sentence with the numbers that decide it.
    figures: ours beside the paper's.
    tables: the numbers with their intervals.
    notes: what a reader must know besides.
  """

  reproduced: bool | None
  measured: str
  figures: Sequence[Figure] = ()
  tables: Sequence[Table] = ()
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Study:
  """One question to the paper's method.

  Attributes:
    name: of its file and of `make study STUDY=…`.
    title: a few words.
    question: one sentence.
    source: section and figure of arXiv:2203.02155.
    paper: what the paper varied, measured and found.
    setup: our grid in the world, and our measures.
    criterion: when the finding counts as reproduced; fixed before the runs.
    jobs: the runs that it needs of one seed.
    analyse: families of the seeds that are complete → finding.
    kind: PAPER, or OURS where the paper made no such claim.
  """

  name: str
  title: str
  question: str
  source: str
  paper: str
  setup: str
  criterion: str
  jobs: Callable[[Family], Sequence[Job]]
  analyse: Callable[[Sequence[Family]], Finding]
  kind: str = PAPER


def all_jobs(studies: Sequence[Study], scale: Scale, root: str) -> list[Job]:
  """Every run of the studies once, the stages shared by a seed first."""
  families = [Family(scale, seed, root) for seed in scale.seeds]
  found = {f.shared.name: f.shared for f in families}
  for study in studies:
    for family in families:
      found |= {job.name: job for job in study.jobs(family)}
  return list(found.values())


def results(
  studies: Sequence[Study],
  scale: Scale,
  root: str,
  seconds: Mapping[str, float],
  machine: str = "",
) -> dict[str, Any]:
  """What `report.study_page` shows, from the runs that are complete.

  Args:
    studies: in the order of the page.
    scale: at which they ran.
    root: folder of the runs.
    seconds: of each run.
    machine: in words.
  """
  found = {s.name: _result(s, scale, root, seconds) for s in studies}
  kept = (
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
      name: {key: study[key] for key in kept} for name, study in found.items()
    },
    "studies": found,
  }


def _result(
  study: Study, scale: Scale, root: str, seconds: Mapping[str, float]
) -> dict[str, Any]:
  families = [Family(scale, seed, root) for seed in scale.seeds]
  jobs = {f.seed: {j.name: j for j in study.jobs(f)} for f in families}
  missing = [
    name
    for of_seed in jobs.values()
    for name, job in of_seed.items()
    if files.read_complete(job.workdir(root)) is None
  ]
  complete = [f for f in families if not set(jobs[f.seed]) & set(missing)]
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
  """How long each run took, as the executor wrote it down."""
  path = os.path.join(root, "seconds.json")
  return files.read_json(path) if os.path.exists(path) else {}


def claim(root: str, scale: Scale) -> None:
  """Notes the size in the folder, or refuses one that holds another size."""
  path = os.path.join(root, _SCALE)
  if os.path.exists(path):
    recorded = claimed(root)
    if (recorded.name, recorded.seeds) != (scale.name, scale.seeds):
      raise UserError(
        f"holds size {recorded.name!r} with seeds {recorded.seeds}, not"
        f" {scale.name!r} with {scale.seeds}",
        file=root,
        fix="choose another --workdir",
      )
  files.write_json_atomic(
    path, {"size": scale.name, "seeds": list(scale.seeds)}
  )


def claimed(root: str) -> Scale:
  """The size that a folder's studies have."""
  path = os.path.join(root, _SCALE)
  fix = "give the --workdir of python -m experiments.study"
  recorded = files.read_json(path, fix=fix)
  try:
    return dataclasses.replace(
      scale_lib.scale(recorded["size"]),
      seeds=tuple(map(int, recorded["seeds"])),
    )
  except (KeyError, TypeError, ValueError) as error:
    raise UserError("is not a study's", file=path, fix=fix) from error
