"""Checks a sweep's runs before the first one starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from instructgpt_jax.cli import flags
from instructgpt_jax.configs import checks
from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps.jobs import Job
from instructgpt_jax.training import fingerprint

_DIRECTORY_FIELDS = ("init_from", "ppo.reward_model", "sft.reward_model")
_DATA = ("demonstrations", "comparisons", "prompts", "pretraining")


def check_runs(
  jobs: Iterable[Job], config: Any, root: str, *, numbers: bool = True
) -> None:
  """Checks the flags and input files of every run that is not complete.

  Args:
    jobs: the runs, without shared stages.
    config: config of every run, before swept fields are set.
    root: the sweep's directory. Its files may be written during the sweep.
    numbers: whether to check batches and lengths beside files.

  Raises:
    UserError: names the run, the flag and the file.
  """
  known = {name for name, _, _ in flags.leaves(config)}
  for job in jobs:
    if job.is_complete(root):
      continue
    values = {k: v for k, v in job.flags.items() if k in known}
    run_config = flags.replace(config, values)
    if numbers:
      _with_run_name(job, lambda run=run_config: checks.check_batches(run))
      _with_run_name(
        job, lambda run=run_config: checks.check_pipeline_lengths(run)
      )
    leaves = {name: value for name, value, _ in flags.leaves(run_config)}
    _with_run_name(job, lambda leaves=leaves: _check_paths(leaves, root))


def fingerprints(jobs: Iterable[Job], config: Any, root: str) -> dict[str, str]:
  """Computes fingerprints of the inputs of unfinished runs.

  Args:
    jobs: the runs, without shared stages.
    config: config of every run, before swept fields are set.
    root: the sweep's directory.

  Returns:
    "FIELD=PATH" → hash, for data and for models.
  """
  known = {name: value for name, value, _ in flags.leaves(config)}
  result: dict[str, str] = {}
  for job in jobs:
    if job.is_complete(root):
      continue
    for name in (*_DIRECTORY_FIELDS, *(f"data.{source}" for source in _DATA)):
      path = job.flags.get(name, known.get(name))
      if not path or _is_within(path.split(",")[0], root):
        continue
      is_data = name not in _DIRECTORY_FIELDS
      for part in [path] if is_data else _directories(name, path):
        key = f"{name}={part}"
        if key not in result:
          of = (
            fingerprint.fingerprint_files
            if is_data
            else fingerprint.fingerprint_model
          )
          result[key] = of(part).hash
  return result


def _directories(name: str, path: str) -> list[str]:
  """Returns the directories that a field names; an ensemble has several."""
  return path.split(",") if name == "ppo.reward_model" else [path]


def _with_run_name(job: Job, body: Callable[[], None]) -> None:
  """Calls `body`, and names the run in its error."""
  try:
    body()
  except UserError as error:
    raise UserError(
      f"{error.problem} (run {job.name})",
      file=error.file,
      line=error.line,
      field=error.field,
      fix=error.fix,
      code=error.code or "bad_run",
    ) from error


def _check_paths(leaves: Mapping[str, Any], root: str) -> None:
  for name in _DIRECTORY_FIELDS:
    for path in _directories(name, leaves.get(name) or ""):
      if path and not _is_within(path, root) and not os.path.isdir(path):
        raise UserError(
          "no such directory",
          file=path,
          field=name,
          fix="give the --workdir of a complete stage",
          code="no_directory",
        )
  path = leaves.get("tokenizer.path")
  if path and not _is_within(path, root) and not os.path.exists(path):
    raise UserError(
      "no such tokenizer", file=path, field="tokenizer.path",
      fix="give a tokenizer's file or directory", code="no_file",
    )  # fmt: skip
  for source in _DATA:
    spec = leaves.get(f"data.{source}")
    if not spec or any(_is_within(part, root) for part in spec.split(",")):
      continue
    try:
      reading.expand(spec)
    except UserError as error:
      raise UserError(
        error.problem,
        file=error.file,
        field=f"data.{source}",
        fix=error.fix,
        code=error.code or "no_file",
      ) from error


def _is_within(path: str, root: str) -> bool:
  """Returns whether a path is in the sweep's directory."""
  absolute, directory = os.path.abspath(path), os.path.abspath(root)
  return os.path.commonpath([absolute, directory]) == directory
