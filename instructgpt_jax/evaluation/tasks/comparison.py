"""Runs a list of tasks over a list of models, and writes a table.

The workdir has MODEL/TASK.jsonl, with prompt, answer and scores of each item;
results.json and results.md, with the means of the last command's models and
tasks; and settings.json. A model's task whose file exists is not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgpt_jax import statistics
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import answers, registry, summary
from instructgpt_jax.evaluation.tasks.registry import Questions
from instructgpt_jax.evaluation.tasks.task import Judge, Model
from instructgpt_jax.runs import files, locks
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import fingerprint

SETTINGS, RESULTS, TABLE = "settings.json", "results.json", "results.md"
PAPER = "paper"  # shots: as many as in the paper


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is run.

  Attributes:
    models: name in the tables → checkpoint. Others are compared with the first.
    tasks: task → its file, "" without one.
    examples: task → file that its examples are drawn from.
    shots: examples before an item, or `PAPER`.
    items: items drawn from each file; 0 takes all.
    seed: seed of items and examples.
    prompts: one of `registry.PROMPTS`.
    judges: name of a judge → the paths and the label that it is made from.
    chat: names of the models that are asked by their chat template.
  """

  models: Mapping[str, str]
  tasks: Mapping[str, str]
  examples: Mapping[str, str] = dataclasses.field(default_factory=dict)
  shots: int | str = 0
  items: int = 0
  seed: int = 0
  prompts: str = "paper"
  judges: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  chat: Sequence[str] = ()

  def shots_of(self, questions: Questions) -> int:
    """Returns how many examples a task shows."""
    task = questions.task
    shots = task.paper_shots if self.shots == PAPER else int(self.shots)
    return answers.shots_of(task, shots)


def run(
  plan: Plan,
  workdir: str,
  open_model: Callable[[str], Model],
  open_judges: Callable[[], Mapping[str, Judge]],
) -> None:
  """Runs all tasks over all models, and writes the tables.

  Args:
    plan: what is run.
    workdir: directory of the results.
    open_model: loads a checkpoint; called only for models with a task to do.
    open_judges: loads the judges, see `task.Task.judge`; called before the
      first model, and only if a task is to be done.

  Raises:
    UserError: a file is missing, of another task or another version; a package
      is not installed; the workdir has results of other settings.
  """
  registry.require_packages(plan.tasks, "--tasks")
  questions = {
    name: registry.load(
      name,
      path,
      count=plan.items,
      seed=plan.seed,
      examples=plan.examples.get(name, ""),
      prompts=plan.prompts,
    )
    for name, path in plan.tasks.items()
  }
  _require_examples(plan, questions)
  directory = files.make_directory(workdir)
  with locks.lock_workdir(directory):
    settings = _merge_settings(plan, questions, directory)
    missing = {
      name: [
        t for t in questions if not _rows_path(directory, name, t).exists()
      ]
      for name in plan.models
    }
    judges = open_judges() if any(missing.values()) else {}
    files.write_json_atomic(directory / SETTINGS, settings)
    for name, tasks in missing.items():
      if tasks:
        asked = {task: questions[task] for task in tasks}
        # No name holds the model, so it is freed before the next one is loaded.
        _run_model(
          plan, asked, directory, name, open_model(plan.models[name]), judges
        )
    _write_results(plan, questions, directory)


def _rows_path(directory: pathlib.Path, model: str, task: str) -> pathlib.Path:
  return directory / model / f"{task}.jsonl"


def _require_examples(plan: Plan, questions: Mapping[str, Questions]) -> None:
  """Draws every item's examples, so that a lack of them is an early error."""
  for name, asked in questions.items():
    for item in asked.items:
      answers.draw_examples(
        item, asked.pool, plan.shots_of(asked), plan.seed, name
      )


def _run_model(
  plan: Plan,
  questions: Mapping[str, Questions],
  directory: pathlib.Path,
  name: str,
  model: Model,
  judges: Mapping[str, Judge],
) -> None:
  """Asks a model tasks, and writes the rows of each."""
  for task, asked in questions.items():
    rows = answers.measure(
      model,
      asked,
      shots=plan.shots_of(asked),
      seed=plan.seed,
      judges=judges,
      chat=name in plan.chat,
    )
    path = _rows_path(directory, name, task)
    files.write_jsonl_atomic(path, (row.to_json() for row in rows))
    intervals = summary.summarize(asked.task, _read_rows(path))
    for variant, measures in intervals.items():
      measure, interval = next(iter(measures.items()))
      log_line(f"{name}, {_title(task, variant)}: {measure} {interval}")


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  return [
    files.parse_json(line, path, number, fix="delete it; it is then measured")
    for number, line in enumerate(files.read_text(path).split("\n"), 1)
    if line.strip()
  ]


def _settings(plan: Plan, questions: Mapping[str, Questions]) -> dict[str, Any]:
  """Returns what a result depends on, by model, by task and in common."""
  return {
    "common": {
      "seed": plan.seed,
      "items": plan.items,
      "shots": plan.shots,
      "prompts": plan.prompts,
      "judges": {
        name: [[path, _fingerprint(path)] for path in paths]
        for name, paths in plan.judges.items()
      },
    },
    "models": {
      name: {
        "checkpoint": path,
        "content": _fingerprint(path),
        "chat": name in plan.chat,
      }
      for name, path in plan.models.items()
    },
    "tasks": {
      name: {"file": plan.tasks[name], "items": _checksum(asked)}
      for name, asked in questions.items()
    },
  }


def _fingerprint(path: str) -> str:
  """Returns a checksum of a model's files, or of a judge's scorers."""
  scorers = sorted(pathlib.Path(path).glob("*.npz"))
  hashes = [fingerprint.fingerprint_model(p).hash for p in scorers or [path]]
  return " ".join(hashes)


def _checksum(questions: Questions) -> int:
  """Returns a checksum of all that a task asks and may show."""
  items = [*questions.items, *questions.pool]
  text = json.dumps(
    [questions.task.instructions, *(dataclasses.asdict(item) for item in items)]
  )
  return zlib.crc32(text.encode())


def _merge_settings(
  plan: Plan, questions: Mapping[str, Questions], directory: pathlib.Path
) -> dict[str, Any]:
  """Adds a plan's settings to those of settings.json; returns both.

  Models and tasks may be added.

  Raises:
    UserError: `other_settings`, the workdir has results of others.
  """
  path = directory / SETTINGS
  settings = _settings(plan, questions)
  if path.exists():
    before = files.read_json(path, fix="choose another --workdir")
    if not isinstance(before, dict) or not all(
      isinstance(before.get(part), dict) for part in settings
    ):
      raise UserError(
        "is of another program",
        file=str(path),
        field="--workdir",
        fix="choose another --workdir",
        code="other_settings",
      )
    for part, values in settings.items():
      for name, value in values.items():
        if before[part].get(name, value) != value:
          raise UserError(
            f"has results of {_difference(name, before[part][name], value)}",
            file=str(directory),
            field="--workdir",
            fix="choose another --workdir, or give the same flags",
            code="other_settings",
          )
    for part in ("models", "tasks"):
      settings[part] = {**before[part], **settings[part]}
  return settings


def _difference(name: str, before: Any, now: Any) -> str:
  if isinstance(before, Mapping) and isinstance(now, Mapping):
    for field, value in before.items():
      if value != now.get(field):
        return f"{name} with {field} {value!r}, not {now.get(field)!r}"
  return f"{name} {before!r}, not {now!r}"


def _write_results(
  plan: Plan, questions: Mapping[str, Questions], directory: pathlib.Path
) -> None:
  """Writes results.json and results.md."""
  first, *others = plan.models
  results: dict[str, Any] = {
    "models": dict(plan.models),
    "seed": plan.seed,
    "prompts": plan.prompts,
    "chat": list(plan.chat),
    "tasks": {},
  }
  for name, asked in questions.items():
    rows = {
      model: _read_rows(_rows_path(directory, model, name))
      for model in plan.models
    }
    task = asked.task
    results["tasks"][name] = {
      "items": len(asked.items),
      "groups": len({item.group or item.id for item in asked.items}),
      "shots": plan.shots_of(asked),
      "unused": dict(asked.unused),
      "cut": {m: sum("is_cut" in r for r in of) for m, of in rows.items()},
      "long": {m: sum("is_long" in r for r in of) for m, of in rows.items()},
      "measures": {m: summary.summarize(task, rows[m]) for m in plan.models},
      "differences": {
        m: summary.summarize(task, rows[m], rows[first]) for m in others
      },
      "no_judge": task.judge if task.judge not in ("", *plan.judges) else "",
    }
  files.write_json_atomic(directory / RESULTS, _as_json(results))
  files.write_text_atomic(directory / TABLE, write_tables(results))


def _as_json(value: Any) -> Any:
  if isinstance(value, statistics.Interval):
    return value.as_dict()
  if isinstance(value, Mapping):
    return {name: _as_json(item) for name, item in value.items()}
  return value


def write_tables(results: Mapping[str, Any]) -> str:
  """Returns results.md: means, differences from the first model, and notes."""
  first, *others = results["models"]
  lines = ["# Tasks", ""]
  lines += _table(results, "measures", [first, *others])
  if others:
    lines += [f"## Difference from {first}, paired by item", ""]
    lines += _table(results, "differences", others)
  notes = _notes(results)
  return "\n".join([*lines, *(["## Notes", "", *notes, ""] if notes else [])])


def _table(
  results: Mapping[str, Any], part: str, models: Sequence[str]
) -> list[str]:
  lines = [
    "| task | shots | units | measure | " + " | ".join(models) + " |",
    "|---|---|---|---|" + "---|" * len(models),
  ]
  for name, task in results["tasks"].items():
    by_model = task[part]
    for variant, measures in by_model[models[0]].items():
      for measure, interval in measures.items():
        cells = [
          _cell(by_model[model][variant].get(measure)) for model in models
        ]
        head = (_title(name, variant), task["shots"], interval.units, measure)
        lines.append(f"| {' | '.join(map(str, (*head, *cells)))} |")
  return [*lines, ""]


def _cell(interval: statistics.Interval | None) -> str:
  if interval is None:
    return "–"
  digits = 1 if abs(interval.mean) >= 10 else 3
  if math.isnan(interval.low) or math.isnan(interval.high):
    return f"{interval.mean:.{digits}f} [–]"
  bounds = f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
  return f"{interval.mean:.{digits}f} {bounds}"


def _title(task: str, variant: str) -> str:
  return f"{task} ({variant})" if variant else task


def _notes(results: Mapping[str, Any]) -> list[str]:
  notes = [
    f"- {model} is asked by its chat template." for model in results["chat"]
  ]
  for name, task in results["tasks"].items():
    if task["groups"] < task["items"]:
      notes.append(
        f"- {name}: {task['items']} items about {task['groups']} texts, which"
        " are the units of the intervals."
      )
    if task["no_judge"]:
      notes.append(
        f"- {name}: measures of the {task['no_judge']} judge are absent,"
        " because none was given."
      )
    notes += [
      f"- {name}: {count} {what} are not used."
      for what, count in task["unused"].items()
    ]
    notes += [
      f"- {name}, {model}: the beginning of {count} prompts was cut to fit the"
      " model's context."
      for model, count in task["cut"].items()
      if count
    ]
    notes += [
      f"- {name}, {model}: {count} answers have as many tokens as they may"
      " have, and perhaps go on."
      for model, count in task["long"].items()
      if count
    ]
  return notes
