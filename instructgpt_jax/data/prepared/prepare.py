"""Prepares documents: tokenises and packs them once, in parallel.

The corpus is divided into units, which worker processes turn into shards. A
unit that is finished has a result in `units/`, so that a preparation which was
interrupted continues with the others. The manifest is written last.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers
from instructgpt_jax.data.curation import drops
from instructgpt_jax.data.prepared import directory as directory_lib
from instructgpt_jax.data.prepared import layout, unit_work
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared import units as units_lib
from instructgpt_jax.data.reading import file_parts
from instructgpt_jax.data.records import SPLITS
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError

_TOKENIZER_UNITS = 2  # units whose text a tokenizer is trained on
_SECONDS_BETWEEN_LINES = 10.0
_FIELD = "data.pretraining"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
  """Settings of a preparation.

  Attributes:
    paths: paths of the documents; together one source.
    directory: the directory to write.
    lengths: row lengths.
    data: shares of the splits, and `max_dropped`.
    tokenizer_path: the tokenizer; "" trains one on the documents.
    tokenizer: size and algorithm of a trained one.
    processes: number of worker processes.
    unit_bytes: size of a unit.
  """

  paths: Sequence[str]
  directory: str
  lengths: Sequence[int]
  data: configs.Data
  tokenizer_path: str = ""
  tokenizer: configs.Tokenizer = dataclasses.field(
    default_factory=configs.Tokenizer
  )
  processes: int = 1
  unit_bytes: int = units_lib.UNIT_BYTES


class _Job(NamedTuple):
  """A unit to prepare, with its number."""

  number: int
  unit: units_lib.Unit


def prepare(
  preparation: Preparation, log: Callable[[str], None] = print
) -> manifest_lib.Manifest:
  """Prepares documents, or continues a preparation that was interrupted.

  Args:
    preparation: the settings.
    log: shows a line.

  Returns:
    The manifest of the complete directory.

  Raises:
    UserError: `output_in_source`, the directory is in one that is read;
      `output_exists`, the directory holds something else;
      `other_preparation`, its preparation began with other settings or files;
      `preparation_running`, another process prepares it; `worker_died`, a
      worker was killed; `most_dropped`; `no_training_records`; and errors of
      reading.
  """
  directory = pathlib.Path(preparation.directory).expanduser()
  directory_lib.require_apart(directory, preparation.paths)
  plan = units_lib.plan(preparation.paths, preparation.unit_bytes)
  description = _describe(preparation, plan)
  directory_lib.open_directory(
    directory, description, (layout.UNITS, layout.ROWS)
  )
  with directory_lib.lock(directory):
    if (directory / layout.MANIFEST).is_file():
      log(f"{directory} is prepared already")
      return manifest_lib.read(directory)
    tokenizer = directory_lib.put_tokenizer(
      directory, lambda: _make_tokenizer(preparation, plan, log)
    )
    settings = unit_work.Settings(
      directory=str(directory),
      lengths=tuple(preparation.lengths),
      valid_fraction=preparation.data.valid_fraction,
      test_fraction=preparation.data.test_fraction,
      token_bytes=2 if tokenizer.vocab_size <= 1 << 16 else 4,
      fill=len(plan.units) == 1,
    )
    _run_units(settings, plan, preparation.processes, log)
    manifest = _manifest(settings, plan, tokenizer, preparation.data)
    manifest_lib.write(directory, manifest)
    shutil.rmtree(directory / layout.UNITS)
    return manifest


def _describe(preparation: Preparation, plan: units_lib.Plan) -> dict[str, Any]:
  """Returns all that the prepared rows depend on, as JSON values."""
  data, path = preparation.data, preparation.tokenizer_path
  tokenizer: Any = dataclasses.asdict(preparation.tokenizer)
  if path:
    tokenizer = directory_lib.tokenizer_hash(tokenizers.load_tokenizer(path))
  return {
    "format": manifest_lib.DOCUMENTS,
    "version": manifest_lib.VERSION,
    "lengths": list(preparation.lengths),
    "valid_fraction": data.valid_fraction,
    "test_fraction": data.test_fraction,
    "tokenizer": tokenizer,
    "unit_bytes": preparation.unit_bytes,
    "files": plan.files,
  }


def _make_tokenizer(
  preparation: Preparation,
  plan: units_lib.Plan,
  log: Callable[[str], None],
) -> Tokenizer:
  """Loads the tokenizer, or trains one."""
  if preparation.tokenizer_path:
    return tokenizers.load_tokenizer(preparation.tokenizer_path)
  log("training a tokenizer")
  return tokenizers.train_tokenizer(
    _tokenizer_texts(plan, preparation.data), preparation.tokenizer
  )


def _tokenizer_texts(plan: units_lib.Plan, data: configs.Data) -> Iterator[str]:
  """Yields training texts of some units, evenly spread over the corpus."""
  count = len(plan.units)
  number = min(count, _TOKENIZER_UNITS)
  for i in np.linspace(0, count - 1, number).astype(int).tolist():
    yield from unit_work.read_texts(plan.units[i], data, fill=count == 1)


# The work.


def _run_units(
  settings: unit_work.Settings,
  plan: units_lib.Plan,
  processes: int,
  log: Callable[[str], None],
) -> None:
  """Prepares the units that are not finished."""
  jobs = [
    _Job(number, unit)
    for number, unit in enumerate(plan.units)
    if unit_work.is_finished(settings.directory, number) is None
  ]
  total = len(plan.units)
  if len(jobs) < total:
    log(f"continuing: {total - len(jobs)} of {total} units are finished")
  if not jobs:
    return
  processes = min(processes, len(jobs))
  start = last = time.monotonic()
  tokens = 0
  for done, result in enumerate(_results(jobs, settings, processes), 1):
    tokens += sum(result["tokens"].values())
    now = time.monotonic()
    if now - last >= _SECONDS_BETWEEN_LINES or done == len(jobs):
      last = now
      log(
        f"{total - len(jobs) + done} of {total} units,"
        f" {tokens / (now - start):,.0f} tokens/s"
      )


def _results(
  jobs: Sequence[_Job], settings: unit_work.Settings, processes: int
) -> Iterator[dict[str, Any]]:
  """Yields the results of units as they finish.

  Raises:
    UserError: the first error of a unit; `worker_died`.
  """
  if processes == 1:
    tokenizer = _load_tokenizer(settings)
    for job in jobs:
      yield unit_work.prepare_unit(job.number, job.unit, settings, tokenizer)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    processes,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(settings,),
  )
  waiting = iter(jobs)
  futures = {
    pool.submit(_prepare_in_worker, job)
    for job in itertools.islice(waiting, 2 * processes)
  }
  try:
    while futures:
      done, futures = concurrent.futures.wait(
        futures, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        yield future.result()
      for job in itertools.islice(waiting, len(done)):
        futures.add(pool.submit(_prepare_in_worker, job))
  except BrokenProcessPool as error:
    raise UserError(
      "a worker process was killed or could not start",
      file=settings.directory,
      fix="run the same command again, finished work is kept; with fewer"
      " --processes it needs less memory",
      code="worker_died",
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


# Of a worker process: what every unit needs.
_worker: tuple[unit_work.Settings, Tokenizer] | None = None


def _start_worker(settings: unit_work.Settings) -> None:
  global _worker
  # Processes work in parallel, and not the threads of one tokenizer.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  _worker = settings, _load_tokenizer(settings)


def _load_tokenizer(settings: unit_work.Settings) -> Tokenizer:
  path = pathlib.Path(settings.directory) / layout.TOKENIZER
  return tokenizers.load_tokenizer(path)


def _prepare_in_worker(job: _Job) -> dict[str, Any]:
  assert _worker is not None
  return unit_work.prepare_unit(job.number, job.unit, *_worker)


# The manifest.


def _manifest(
  settings: unit_work.Settings,
  plan: units_lib.Plan,
  tokenizer: Tokenizer,
  data: configs.Data,
) -> manifest_lib.Manifest:
  """Joins the results of all units; refuses a corpus that loses too much."""
  documents: collections.Counter[str] = collections.Counter()
  tokens: collections.Counter[str] = collections.Counter()
  shards: dict[int, dict[str, tuple[manifest_lib.Shard, ...]]] = {
    length: dict.fromkeys(SPLITS, ()) for length in settings.lengths
  }
  pieces: list[dict[str, Any]] = []
  for number in range(len(plan.units)):
    result = manifest_lib.read_json(
      unit_work.result_path(settings.directory, number)
    )
    documents.update(result["documents"])
    tokens.update(result["tokens"])
    pieces += result["pieces"]
    for length, splits in result["shards"].items():
      for split, shard in splits.items():
        shards[int(length)][split] += (manifest_lib.Shard(**shard),)
  _require(documents, pieces, data)
  return manifest_lib.Manifest(
    kind="documents",
    tokenizer_hash=directory_lib.tokenizer_hash(tokenizer),
    vocab_size=tokenizer.vocab_size,
    token_bytes=settings.token_bytes,
    documents={split: documents[split] for split in SPLITS},
    tokens={split: tokens[split] for split in SPLITS},
    shards=shards,
    sources=tuple((os.path.basename(p), size) for p, size, _ in plan.files),
    settings={
      name: getattr(data, name)
      for name in ("valid_fraction", "test_fraction", "max_dropped")
    },
    dropped={
      **{key: _total(pieces, key) for key in ("skipped", "unused", "notes")},
      "ignored": [[os.path.basename(p), why] for p, why in plan.ignored],
    },
  )


def _total(pieces: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
  total: collections.Counter[str] = collections.Counter()
  for piece in pieces:
    total.update(piece["report"][key])
  return dict(total)


def _require(
  documents: Mapping[str, int],
  pieces: Sequence[Mapping[str, Any]],
  data: configs.Data,
) -> None:
  """Refuses a corpus that skips too much, or has no training documents."""
  skipped = _total(pieces, "skipped")
  records = sum(piece["report"]["records"] for piece in pieces)
  first: dict[str, str] = {}
  for piece in pieces:
    for reason, line in piece["report"]["first_skips"].items():
      if reason not in first:
        before = (
          file_parts.lines_before(piece["path"], piece["start"])
          if piece["start"]
          else 0
        )
        first[reason] = f"{piece['path']}:{before + line}"
  causes = drops.causes(drops.Drops(), skipped, first)
  drops.judge(_FIELD, causes, records + sum(skipped.values()), data)
  if not documents["train"]:
    counts = ", ".join(f"{n} in {split}" for split, n in documents.items() if n)
    raise UserError(
      f"no document is left for train ({counts or 'there are none'})",
      field=_FIELD,
      fix="give documents for training: the others are all in valid and test"
      if counts
      else 'give files whose records have a "text", or .txt files',
      code="no_training_records",
    )
