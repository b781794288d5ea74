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

_FOLDERS = ("init_from", "ppo.reward_model", "sft.reward_model")
_DATA = ("demonstrations", "comparisons", "prompts", "pretraining")


def check(
  jobs: Iterable[Job], config: Any, root: str, *, numbers: bool = True
) -> None:
  """Checks the flags and input files of every run that is not complete.

  Args:
    jobs: the runs, without shared stages.
    config: config of every run, before swept fields are set.
    root: the sweep's directory. Files in it may be made while it runs.
    numbers: whether to check batches and lengths beside files.

  Raises:
    UserError: names the run, the flag and the file.
  """
  known = {name for name, _, _ in flags.leaves(config)}
  for job in jobs:
    if job.complete(root):
      continue
    values = {k: v for k, v in job.flags.items() if k in known}
    whole = flags.replace(config, values)
    if numbers:
      _of(job, lambda whole=whole: checks.check_batches(whole))
      _of(job, lambda whole=whole: checks.check_pipeline_lengths(whole))
    leaves = {name: value for name, value, _ in flags.leaves(whole)}
    _of(job, lambda leaves=leaves: _paths(leaves, root))


def fingerprints(jobs: Iterable[Job], config: Any, root: str) -> dict[str, str]:
  """Computes fingerprints of what unfinished runs read from outside the sweep.

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
    if job.complete(root):
      continue
    for name in (*_FOLDERS, *(f"data.{source}" for source in _DATA)):
      path = job.flags.get(name, known.get(name))
      key = f"{name}={path}"
      if not path or key in result or _within(path.split(",")[0], root):
        continue
      of = (
        fingerprint.fingerprint_model
        if name in _FOLDERS
        else fingerprint.fingerprint_files
      )
      result[key] = of(path).hash
  return result


def _of(job: Job, body: Callable[[], None]) -> None:
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


def _paths(leaves: Mapping[str, Any], root: str) -> None:
  for name in _FOLDERS:
    path = leaves.get(name)
    if path and not _within(path, root) and not os.path.isdir(path):
      raise UserError(
        "there is no such directory",
        file=path,
        field=name,
        fix="give the --workdir of a stage that has run to its end",
        code="no_folder",
      )
  path = leaves.get("tokenizer.path")
  if path and not _within(path, root) and not os.path.exists(path):
    raise UserError(
      "there is no such tokenizer", file=path, field="tokenizer.path",
      fix="give a tokenizer's file or directory", code="no_file",
    )  # fmt: skip
  for source in _DATA:
    spec = leaves.get(f"data.{source}")
    if not spec or any(_within(part, root) for part in spec.split(",")):
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


def _within(path: str, root: str) -> bool:
  """Whether a path lies in the sweep's directory."""
  whole, folder = os.path.abspath(path), os.path.abspath(root)
  return os.path.commonpath([whole, folder]) == folder
