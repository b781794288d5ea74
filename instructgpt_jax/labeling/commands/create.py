"""Commands that make a project, and add items to it."""

from __future__ import annotations

import argparse
import os
import pathlib
import random
from typing import Any

from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import example, item_files, project, sampling
from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.labeling.commands import stores
from instructgpt_jax.labeling.commands.flags import PROGRAM, SAMPLING, URL
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress


def create(flags: argparse.Namespace) -> None:
  """Makes a project and its store."""
  path = pathlib.Path(flags.project)
  if _has_content(flags):
    project.check_title(flags.title, None, "--title")
    stores.check_output(
      path,
      "--project",
      f"choose another file, or add items with {PROGRAM} add",
    )
    stores.check_store(flags.store)
    entries = _new_entries(flags, path)
    instructions = path.parent / "instructions.md"
    if flags.instructions:
      instructions = pathlib.Path(flags.instructions)
    elif not instructions.exists():
      files.write_text_atomic(instructions, example.default_instructions())
    settings = project.Settings(
      title=flags.title.strip() or project.Settings().title,
      overlap=flags.overlap,
    )
    files.write_json_atomic(
      path,
      project.as_json(settings, entries, _relative(instructions, path)),
    )
    print(f"wrote {path}")
  elif not path.exists():
    raise UserError(
      "the project has no items, and there is no such file",
      file=str(path),
      field="--project",
      fix="name a file with --rank, --compare, --demonstrate or --screen, or"
      " sample answers with --prompts and --sample_from",
      code="no_items",
    )
  else:
    _refuse_settings(flags, path)
  store = stores.update(flags.store, str(path), create=True)
  try:
    stores.print_owner_link(store, URL)
  finally:
    store.close()
  # The name of a database is its URL without the password.
  print(f"next: {PROGRAM} serve --store={store.name} --project={path}")


def add(flags: argparse.Namespace) -> None:
  """Adds items to a project and its store."""
  if not _has_content(flags):
    raise UserError(
      "nothing to add",
      fix="name a file with --rank, --compare, --demonstrate or --screen, or"
      " sample answers with --prompts and --sample_from",
      code="no_items",
    )
  path = pathlib.Path(flags.project)
  project.read_project(str(path))
  store_lib.open_store(flags.store).close()
  value = project.read_fields(str(path))
  value["items"] += _new_entries(flags, path)
  files.write_json_atomic(path, value)
  stores.update(flags.store, str(path), create=False).close()


def _refuse_settings(flags: argparse.Namespace, path: pathlib.Path) -> None:
  """Refuses settings for a project that exists, and has its own."""
  for name, default in (("title", ""), ("instructions", ""), ("overlap", 1)):
    if getattr(flags, name) != default:
      raise UserError(
        "is not used, because the project exists",
        field=f"--{name}",
        fix=f"change it in {path}, or leave out the flag",
        code="unused_flag",
      )


def _has_content(flags: argparse.Namespace) -> bool:
  names = ("rank", "compare", "demonstrate", "screen", "write", "sample_from",
           "prompts")  # fmt: skip
  return any(getattr(flags, name) for name in names)


def _new_entries(
  flags: argparse.Namespace, path: pathlib.Path
) -> list[dict[str, Any]]:
  """Returns the entries of PROJECT.json that the flags name.

  All files are read first, so that an error leaves nothing behind.
  """
  entries: list[dict[str, Any]] = []
  for task, name in (
    ("ranking", flags.rank),
    ("comparison", flags.compare),
    ("demonstration", flags.demonstrate),
    ("screening", flags.screen),
  ):
    if name:
      item_files.read(task, name, 1)
      entries.append({"task": task, "file": _relative(name, path)})
  if flags.write:
    entries.append({"task": "demonstration", "count": flags.write})
  if bool(flags.sample_from) != bool(flags.prompts):
    missing = "--prompts" if flags.sample_from else "--sample_from"
    raise UserError(
      "answers are sampled from stages, for prompts",
      field=missing,
      fix=f"add {missing}",
      code="missing_flag",
    )
  for name, default in SAMPLING.items():
    if not flags.sample_from and getattr(flags, name) != default:
      raise UserError(
        "is for answers that are sampled",
        field=f"--{name}",
        fix="add --sample_from and --prompts, or leave out the flag",
        code="unused_flag",
      )
  if flags.sample_from:
    answers = _sample(flags, path)
    entries.append({"task": flags.task, "file": _relative(answers, path)})
  return entries


def _relative(name: str | pathlib.Path, project: pathlib.Path) -> str:
  return os.path.relpath(name, project.parent)


def _sample(flags: argparse.Namespace, project: pathlib.Path) -> pathlib.Path:
  """Samples answers into a file, and returns its path."""
  stages = [s.strip().rstrip("/") for s in flags.sample_from.split(",")]
  stages = [stage for stage in stages if stage]
  sampling.shares(flags.completions, len(stages))
  if flags.task == "comparison" and len(stages) < 2:
    raise UserError(
      "comparisons are of answers of two or more stages",
      field="--sample_from",
      fix="name another stage, or use --task=ranking",
      code="one_stage",
    )
  path = pathlib.Path(flags.answers or project.parent / "answers.jsonl")
  stores.check_output(path, "--answers", "name another file with --answers")
  records, _ = reading.read_prompts(flags.prompts)
  prompts = list({record.turns: record for record in records}.values())
  rng = random.Random(f"prompts {flags.seed}")
  prompts = rng.sample(prompts, min(flags.num_prompts, len(prompts)))

  def load(stage: str) -> Any:
    from instructgpt_jax.chat import engine  # Imports JAX, unlike --help.

    return engine.load_session(
      stage,
      engine.SamplingOptions(
        max_tokens=flags.max_tokens,
        temperature=flags.temperature,
        seed=flags.seed + stages.index(stage),
      ),
    )

  with Progress(
    len(prompts) * flags.completions, "answers", unit="answer", compiles=True
  ) as progress:
    sampled = sampling.sample_answers(
      prompts,
      stages,
      load,
      completions=flags.completions,
      seed=flags.seed,
      progress=progress,
    )
  rows = sampled.records
  if flags.task == "comparison":
    rows = sampling.pair_records(rows)
  files.write_jsonl_atomic(path, rows)
  print(
    f"wrote {path}: {len(rows)} records; {sampled.too_long} prompts are too"
    f" long, and {sampled.equal} have no two different answers"
  )
  return path
