"""Kills a program that writes labels, and counts what was lost.

  python -m benchmarks.labeling_kills --kills=100

Each round starts a process that makes or opens the store and whose threads save
drafts and submit labels. It sends a record of each call that has returned, and
is killed with SIGKILL at a random moment. The store must then open, pass
SQLite's check, and have every draft and label of the records, or a newer one,
with no item over its overlap. The exit status is 1 if it does not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from instructgpt_jax import streams
from instructgpt_jax.errors import UserError

_THREADS = 4
_ITEMS = 20  # new ones in each round
_OVERLAP = 2
_SAVES = 3  # drafts before a label
_LOCK_SECONDS = 0.5  # short, so that places change hands
_sending = threading.Lock()


@dataclasses.dataclass
class Counts:
  """What the rounds wrote.

  Attributes:
    kills: processes that were killed while they wrote.
    early: processes that were killed before their first record.
    drafts: drafts whose call returned.
    labels: labels whose call returned.
  """

  kills: int = 0
  early: int = 0
  drafts: int = 0
  labels: int = 0


def run_rounds(
  path: str, kills: int, *, seed: int = 0, longest: float = 1.0
) -> Counts:
  """Kills writers of a store, and checks it after each.

  Args:
    path: file of the store; made by the first writer.
    kills: number of writers.
    seed: seed of the moments.
    longest: a writer is killed within this many seconds after its first
      record. One in ten has a store that it makes, and is killed within them
      after its start.

  Raises:
    AssertionError: something was lost, doubled or damaged.
  """
  generator = random.Random(seed)
  counts = Counts()
  acknowledged: dict[int, dict[str, Any]] = {}
  for number in range(kills):
    seconds = generator.random() * longest
    if number % 10 == 9:
      new = f"{path}.{number}"
      records = _kill_a_writer(new, number, seconds, early=True)
      _check(new, {record["assignment"]: record for record in records})
    else:
      records = _kill_a_writer(path, number, seconds, early=False)
      acknowledged |= {record["assignment"]: record for record in records}
      _check(path, acknowledged)
    counts.kills += 1
    counts.early += not records
    for record in records:
      counts.drafts += record["kind"] == "draft"
      counts.labels += record["kind"] == "label"
    if counts.kills % 10 == 0:
      print(dataclasses.asdict(counts), file=sys.stderr)
  return counts


def _kill_a_writer(
  path: str, number: int, seconds: float, early: bool
) -> list[dict[str, Any]]:
  """Starts a writer and kills it; returns the records that it sent."""
  # Forks of a process that has imported all: a start takes milliseconds.
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["instructgpt_jax.labeling.labels"])
  reader, writer = context.Pipe(duplex=False)
  process = context.Process(target=_write, args=(path, number, writer))
  process.start()
  writer.close()
  records = []
  deadline = time.monotonic() + seconds if early else None
  while deadline is None or time.monotonic() < deadline:
    left = None if deadline is None else deadline - time.monotonic()
    if reader.poll(left):
      try:
        records.append(json.loads(reader.recv_bytes()))
      except EOFError:
        process.join()
        break
      if deadline is None:
        deadline = time.monotonic() + seconds
  assert process.is_alive(), f"the writer ended: {process.exitcode}"
  process.kill()
  process.join()
  # The last message may be cut.
  with contextlib.suppress(EOFError, OSError):
    while True:
      records.append(json.loads(reader.recv_bytes()))
  reader.close()
  process.close()
  return records


def _check(path: str, acknowledged: dict[int, dict[str, Any]]) -> None:
  import sqlalchemy as sa

  from instructgpt_jax.labeling import schema
  from instructgpt_jax.labeling.store import open_store

  store = open_store(path, create=True)
  try:
    with store.read() as connection:
      problem = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
      assert problem == "ok", problem
      rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
      assert rows == [], rows
      drafts = connection.execute(sa.select(schema.drafts)).all()
      labels = connection.execute(sa.select(schema.labels)).all()
  finally:
    store.close()
  draft_of = {row.assignment_id: row for row in drafts}
  label_of = {row.assignment_id: row for row in labels}
  for number, record in acknowledged.items():
    draft = draft_of[number]
    assert draft.revision >= record["revision"], (draft, record)
    if draft.revision == record["revision"]:
      assert draft.content == record["content"], (draft, record)
    if record["kind"] == "label":
      assert label_of[number].content == record["content"], record
  pairs = [(row.item_id, row.user_id) for row in labels]
  assert len(pairs) == len(set(pairs)), "a label is doubled"
  places = collections.Counter(item for item, _ in pairs)
  assert max(places.values(), default=0) <= _OVERLAP, "too many labels"


# The writer.


def _write(path: str, number: int, writer: Connection) -> None:
  """Adds items and labels them, until it is killed."""
  import sqlalchemy as sa

  from instructgpt_jax.labeling import schema
  from instructgpt_jax.labeling.store import open_store

  store = open_store(path, create=True)
  now = time.time()
  with store.begin() as connection:
    connection.execute(
      sa.insert(schema.items),
      [
        dict(
          task="ranking",
          payload={"turns": [], "completions": ["a", "b"]},
          kind="",
          overlap=_OVERLAP,
          created_at=now,
        )
        for _ in range(_ITEMS)
      ],
    )
    # Without passwords: nobody logs in.
    user_ids = [
      connection.execute(
        sa.insert(schema.users)
        .values(
          name=f"{number}.{i}",
          name_key=f"{number}.{i}",
          role="labeler",
          held_out=False,
          password="",
          active=True,
          created_at=now,
        )
        .returning(schema.users.c.id)
      ).scalar_one()
      for i in range(_THREADS)
    ]
  threads = [
    threading.Thread(
      target=_label_items, args=(store, user_id, writer), daemon=True
    )
    for user_id in user_ids
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  # Nothing is left to label: wait for the kill, or for the end of the program.
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()


def _label_items(store: Any, user_id: int, writer: Connection) -> None:
  from instructgpt_jax.labeling import assignment

  rules = assignment.Rules(lock_seconds=_LOCK_SECONDS)
  while work := assignment.next_item(store, user_id, rules, time.time()):
    try:
      _label_item(store, user_id, work, rules, writer)
    except UserError as error:
      if error.code != "place_taken":
        raise


def _label_item(
  store: Any, user_id: int, work: Any, rules: Any, writer: Connection
) -> None:
  from instructgpt_jax.labeling import labels

  number, revision = work.assignment_id, work.draft.revision
  for save in range(_SAVES):
    content = {"notes": f"{user_id} {save} " + "x" * random.randrange(5000)}
    draft = labels.save_draft(
      store, labels.Save(user_id, number, content, revision), rules, time.time()
    )
    revision = draft.revision
    _send(writer, "draft", number, revision, content)
  content = {"ranks": [1, 2], "notes": f"{user_id}"}
  label = labels.submit(
    store, labels.Save(user_id, number, content, revision), rules, time.time()
  )
  _send(writer, "label", number, label.draft_revision, content)


def _send(
  writer: Connection,
  kind: str,
  assignment_id: int,
  revision: int,
  content: dict[str, Any],
) -> None:
  record = dict(
    kind=kind, assignment=assignment_id, revision=revision, content=content
  )
  with _sending, contextlib.suppress(BrokenPipeError):
    writer.send_bytes(json.dumps(record).encode())


# The command line.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.labeling_kills",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--kills", type=int, default=100, help="number of kills (default: 100)"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="seed of the moments (default: 0)"
  )
  flags = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as directory:
    path = str(pathlib.Path(directory) / "labels.db")
    try:
      counts = run_rounds(path, flags.kills, seed=flags.seed)
    except AssertionError as error:
      print(f"lost: {error}", file=sys.stderr)
      return 1
  print(
    f"{counts.kills} kills, {counts.early} before the first record:"
    f" {counts.drafts:,} drafts and {counts.labels:,} labels were"
    " acknowledged, and all are there"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
