"""Kills a program that writes labels, and counts what was lost.

  python -m benchmarks.labeling_kills --kills=100

Each round starts a process that makes or opens the store and whose threads save
drafts and submit labels. It prints a line after each call that has returned.
The process is killed with SIGKILL at a random moment. The store must then open,
pass SQLite's check, and have every draft and label whose line was printed, or a
newer one, with no item over its overlap. The exit status is 1 if it does not.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from instructgpt_jax import streams
from instructgpt_jax.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent
_THREADS = 4
_ITEMS = 20  # new ones in each round
_OVERLAP = 2
_SAVES = 3  # drafts before a label
_LOCK_SECONDS = 0.5  # short, so that places change hands
_printing = threading.Lock()


@dataclasses.dataclass
class Counts:
  """What the rounds wrote.

  Attributes:
    kills: processes that were killed while they wrote.
    early: processes that were killed before their first line.
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
    longest: a writer is killed within this many seconds after its first line,
      and one in ten before it.

  Raises:
    AssertionError: something was lost, doubled or damaged.
  """
  generator = random.Random(seed)
  counts = Counts()
  acknowledged: dict[int, dict[str, Any]] = {}
  for number in range(kills):
    early = number % 10 == 9
    seconds = generator.random() * (longest if not early else 0.5)
    lines = _kill_a_writer(path, number, seconds, early)
    counts.kills += 1
    counts.early += not lines
    for line in lines:
      record = json.loads(line)
      counts.drafts += record["kind"] == "draft"
      counts.labels += record["kind"] == "label"
      acknowledged[record["assignment"]] = record
    _check(path, acknowledged)
  return counts


def _kill_a_writer(
  path: str, number: int, seconds: float, early: bool
) -> list[str]:
  """Starts a writer and kills it; returns the complete lines it printed."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "benchmarks.labeling_kills"),
      *("--write", path, str(number)),
    ],
    stdout=subprocess.PIPE,
    cwd=_ROOT,
  )
  assert process.stdout is not None
  descriptor = process.stdout.fileno()
  output = b""
  deadline = time.monotonic() + seconds if early else None
  with selectors.DefaultSelector() as selector:
    selector.register(descriptor, selectors.EVENT_READ)
    while deadline is None or time.monotonic() < deadline:
      left = None if deadline is None else deadline - time.monotonic()
      if selector.select(left):
        data = os.read(descriptor, 1 << 16)
        if not data:
          break
        output += data
        if deadline is None:
          deadline = time.monotonic() + seconds
  assert process.poll() is None, f"the writer ended: {process.returncode}"
  process.send_signal(signal.SIGKILL)
  output += process.stdout.read()
  process.wait()
  process.stdout.close()
  return output.decode().split("\n")[:-1]


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


def _write(path: str, number: int) -> None:
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
    threading.Thread(target=_label_items, args=(store, user_id), daemon=True)
    for user_id in user_ids
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  # Nothing is left to label: wait for the kill.
  signal.pause()


def _label_items(store: Any, user_id: int) -> None:
  from instructgpt_jax.labeling import assignment

  rules = assignment.Rules(lock_seconds=_LOCK_SECONDS)
  while work := assignment.next_item(store, user_id, rules, time.time()):
    try:
      _label_item(store, user_id, work, rules)
    except UserError as error:
      if error.code != "place_taken":
        raise


def _label_item(store: Any, user_id: int, work: Any, rules: Any) -> None:
  from instructgpt_jax.labeling import labels

  number, revision = work.assignment_id, work.draft.revision
  for save in range(_SAVES):
    content = {"notes": f"{user_id} {save} " + "x" * random.randrange(5000)}
    draft = labels.save_draft(
      store, user_id, number, content, revision, rules, time.time()
    )
    revision = draft.revision
    _print("draft", number, revision, content)
  content = {"ranks": [1, 2], "notes": f"{user_id}"}
  label = labels.submit(
    store, user_id, number, content, revision, rules, time.time()
  )
  _print("label", number, label.draft_revision, content)


def _print(
  kind: str, assignment_id: int, revision: int, content: dict[str, Any]
) -> None:
  record = dict(
    kind=kind, assignment=assignment_id, revision=revision, content=content
  )
  data = (json.dumps(record) + "\n").encode()
  with _printing:
    while data:
      data = data[os.write(1, data) :]


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
  parser.add_argument(
    "--write",
    nargs=2,
    metavar=("STORE", "NUMBER"),
    help=argparse.SUPPRESS,
  )
  flags = parser.parse_args(argv)
  if flags.write:
    _write(flags.write[0], int(flags.write[1]))
    return 0
  with tempfile.TemporaryDirectory() as directory:
    path = str(pathlib.Path(directory) / "labels.db")
    try:
      counts = run_rounds(path, flags.kills, seed=flags.seed)
    except AssertionError as error:
      print(f"lost: {error}", file=sys.stderr)
      return 1
  print(
    f"{counts.kills} kills, {counts.early} before the first line:"
    f" {counts.drafts:,} drafts and {counts.labels:,} labels were"
    " acknowledged, and all are there"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
