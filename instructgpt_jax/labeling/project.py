"""Reads a project's description, and brings a store up to it.

PROJECT.json names the instructions, the settings, and the files whose records
become items. Its paths are relative to its directory.

  {
    "title": "Answers of two models",
    "instructions": "instructions.md",
    "overlap": 2,
    "items": [
      {"task": "ranking", "file": "answers.jsonl"},
      {"task": "demonstration", "count": 50}
    ]
  }
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import item_files, schema, screening
from instructgpt_jax.labeling.assignment import MAX_LOCK_SECONDS, Rules
from instructgpt_jax.labeling.item_files import NewItem
from instructgpt_jax.labeling.people import names as names_lib
from instructgpt_jax.labeling.store import Store
from instructgpt_jax.runs import files

MAX_OVERLAP = 1000
MAX_COUNT = 100_000  # prompts of one entry that labelers write
_BYTE_ORDER_MARK = "\ufeff"
_TASK_FIELDS = ("task", "file", "count", "overlap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The settings of a project, which the store has.

  Attributes:
    title: shown on every page.
    overlap: labelers of each item, where its entry has no other number.
    lock_seconds: time without a saved draft after which another labeler may
      get the item.
    gold_share: share of a labeler's items that are gold items.
    seed: seed of display orders and of the positions of gold items.
    sensitive_cut: soft cut of screening, as a share.
    ranking_cut: soft cut of screening, as a share.
    demonstration_cut: soft cut of screening, as a mean rating from 1 to 7.
  """

  title: str = "Labeling"
  overlap: int = 1
  lock_seconds: float = 1800.0
  gold_share: float = 0.0
  seed: int = 0
  sensitive_cut: float = 0.75
  ranking_cut: float = 0.75
  demonstration_cut: float = 6.0

  def rules(self) -> Rules:
    """Returns the rules of assignment."""
    return Rules(
      lock_seconds=self.lock_seconds, gold_share=self.gold_share, seed=self.seed
    )

  def cuts(self) -> screening.Cuts:
    """Returns the soft cuts of screening."""
    return screening.Cuts(
      sensitive=self.sensitive_cut,
      ranking=self.ranking_cut,
      demonstration=self.demonstration_cut,
    )


# Lowest and highest value of each number.
_RANGES: dict[str, tuple[float, float]] = {
  "overlap": (1, MAX_OVERLAP),
  "lock_seconds": (60, MAX_LOCK_SECONDS),
  "gold_share": (0, 1),
  "seed": (0, 2**31 - 1),
  "sensitive_cut": (0, 1),
  "ranking_cut": (0, 1),
  "demonstration_cut": (1, 7),
}
_WHOLE = ("overlap", "seed")


class Entry(NamedTuple):
  """An element of `items`.

  Attributes:
    task: one of `schema.TASKS`.
    file: path of the records; "" for prompts that labelers write.
    count: number of prompts that labelers write.
    overlap: labelers of each item.
  """

  task: str
  file: str
  count: int
  overlap: int


@dataclasses.dataclass(frozen=True)
class Project:
  """A project as its description states it.

  Attributes:
    path: path of PROJECT.json.
    settings: its settings.
    instructions: Markdown text of the instructions.
    entries: where its items come from.
  """

  path: str
  settings: Settings
  instructions: str
  entries: tuple[Entry, ...]


class Changes(NamedTuple):
  """What a store did not have before.

  Attributes:
    added: number of new items.
    total: number of items of the project's files.
    changed: number of items whose overlap, gold ranks, kind, sources or origin
      have changed.
    others: number of items of the store that are in no file of the project.
    instructions: version of the instructions.
    is_new_version: whether that version is new.
  """

  added: int
  total: int
  changed: int
  others: int
  instructions: int
  is_new_version: bool


def read_project(path: str) -> Project:
  """Reads PROJECT.json and the instructions.

  Raises:
    UserError: a file cannot be read, or a field is unknown or has a wrong
      value.
  """
  value = read_fields(path)
  names = [field.name for field in dataclasses.fields(Settings)]
  _refuse_unknown(path, "", value, [*names, "instructions", "items"])
  settings = Settings(
    **{
      name: _setting(path, name, value[name]) for name in names if name in value
    }
  )
  root = pathlib.Path(path).parent
  entries = value.get("items")
  if not isinstance(entries, list) or not entries:
    raise _error(
      path,
      "items",
      "the project has no items",
      'add an entry such as {"task": "ranking", "file": "answers.jsonl"}',
      "no_items",
    )
  return Project(
    path,
    settings,
    _instructions(path, root, value.get("instructions", "")),
    tuple(
      _entry(path, root, i, entry, settings) for i, entry in enumerate(entries)
    ),
  )


def read_fields(path: str) -> dict[str, Any]:
  """Returns the fields of PROJECT.json, whose values are not checked.

  Raises:
    UserError: the file cannot be read, is no JSON object, or has a field twice.
  """

  def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
      name = next(n for i, (n, _) in enumerate(pairs) if n in dict(pairs[:i]))
      raise _error(path, name, "the field is there twice", "delete one of them")
    return fields

  text = files.read_text(
    path, fix="make a project with python -m instructgpt_jax.labeling create"
  ).removeprefix(_BYTE_ORDER_MARK)
  value = files.parse_json(text, path, 1, fix="correct the file")
  if not isinstance(value, dict):
    raise _error(path, "", "is not a project", "write one JSON object")
  return json.loads(text, object_pairs_hook=refuse_repeated)


def _error(
  path: str, field: str, problem: str, fix: str, code: str = "bad_project"
) -> UserError:
  return UserError(problem, file=path, field=field or None, fix=fix, code=code)


def _refuse_unknown(
  path: str, where: str, value: Mapping[str, Any], names: Sequence[str]
) -> None:
  for name in value:
    if name not in names:
      raise _error(
        path,
        f"{where}{name}",
        "there is no such field",
        "use one of " + ", ".join(names),
      )


def _setting(path: str, name: str, value: Any) -> Any:
  if name == "title":
    if not isinstance(value, str) or not value.strip():
      raise _error(path, name, "is no text", "write a title of the project")
    check_title(value, path, name)
    return value.strip()
  return _number(path, name, value, *_RANGES[name], whole=name in _WHOLE)


def check_title(title: str, path: str | None, field: str) -> None:
  """Refuses a title that no page can show.

  Raises:
    UserError: it has control characters, or half a surrogate pair.
  """
  if not names_lib.is_printable(title):
    raise UserError(
      "the title has invisible characters",
      file=path,
      field=field,
      fix="write it without them",
      code="bad_title",
    )


def _number(
  path: str, field: str, value: Any, low: float, high: float, *, whole: bool
) -> Any:
  is_number = isinstance(value, int if whole else int | float)
  if isinstance(value, bool) or not is_number or not low <= value <= high:
    kind = "a whole number" if whole else "a number"
    raise _error(
      path,
      field,
      f"{json.dumps(value)[:50]} is not {kind} from {low:g} to {high:g}",
      f"write {kind} from {low:g} to {high:g}",
    )
  return value if whole else float(value)


def _instructions(path: str, root: pathlib.Path, name: Any) -> str:
  if not isinstance(name, str):
    raise _error(
      path, "instructions", "is no text", "write the path of a Markdown file"
    )
  if not name:
    return ""
  text = files.read_text(
    root / name, fix="correct the path in the project's field instructions"
  )
  if "\0" in text:
    raise UserError(
      "has NUL characters",
      file=str(root / name),
      fix="write the instructions as Markdown text",
      code="bad_text",
    )
  # An editor of Windows is no reason for a new version.
  return text.removeprefix(_BYTE_ORDER_MARK).replace("\r\n", "\n")


def _entry(
  path: str, root: pathlib.Path, index: int, value: Any, settings: Settings
) -> Entry:
  where = f"items[{index}]"
  if not isinstance(value, dict):
    raise _error(
      path, where, "is not an object", 'write {"task": …, "file": …}'
    )
  _refuse_unknown(path, f"{where}.", value, _TASK_FIELDS)
  task = value.get("task")
  if task not in schema.TASKS:
    raise _error(
      path,
      f"{where}.task",
      f"{json.dumps(task)[:50]} is no task",
      "use one of " + ", ".join(schema.TASKS),
    )
  overlap = _number(
    path,
    f"{where}.overlap",
    value.get("overlap", settings.overlap),
    1,
    MAX_OVERLAP,
    whole=True,
  )
  name, count = value.get("file", ""), 0
  if "count" in value:
    if name or task != "demonstration":
      raise _error(
        path,
        f"{where}.count",
        "is the number of prompts that labelers write",
        'use it in {"task": "demonstration", "count": 50} only',
      )
    count = _number(
      path, f"{where}.count", value["count"], 1, MAX_COUNT, whole=True
    )
  elif not isinstance(name, str) or not name:
    raise _error(
      path,
      f"{where}.file",
      "the entry has no file",
      "write the path of the records",
      "no_items",
    )
  return Entry(task, str(root / name) if name else "", count, overlap)


def read_items(project: Project) -> tuple[list[NewItem], list[str]]:
  """Reads the items of all entries.

  Returns:
    The items, and remarks on what the files have that is not used.

  Raises:
    UserError: a file cannot be read, a record cannot be used, or there are no
      items.
  """
  items: list[NewItem] = []
  remarks: list[str] = []
  written = 0
  for entry in project.entries:
    if entry.count:
      items += [
        NewItem("demonstration", {"number": written + i}, "", entry.overlap)
        for i in range(entry.count)
      ]
      written += entry.count
    else:
      more, notes = item_files.read(entry.task, entry.file, entry.overlap)
      items += more
      remarks += notes
  unique = {item.key: item for item in reversed(items)}
  if len(unique) < len(items):
    remarks.append(
      f"{len(items) - len(unique)} items of the project are repetitions of"
      " others, and are left out"
    )
  gold = sum(item.gold is not None for item in unique.values()
             if item.task != "screening")  # fmt: skip
  if gold and not project.settings.gold_share:
    remarks.append(
      f"{gold} items have gold ranks, and nobody gets them while gold_share is"
      " 0"
    )
  return list(reversed(unique.values())), remarks


def update_store(
  store: Store, project: Project, items: Sequence[NewItem], now: float
) -> Changes:
  """Brings a store up to a project, in one transaction.

  Settings are replaced, and items that the store does not have are added.
  Instructions that no version has had become the newest; others were replaced
  on the page of instructions, and stay so. Nothing is removed.
  """
  with store.begin() as connection:
    _write_settings(connection, project.settings)
    is_new = not _has_had(connection, project.instructions)
    if is_new:
      _write_instructions(connection, project.instructions, now)
    version, _ = _newest_instructions(connection) or (0, "")
    known = _known_items(connection)
    new = [item for item in items if item.key not in known]
    if new:
      connection.execute(
        sa.insert(schema.items), [item.as_row(now) for item in new]
      )
    changed = _update_items(connection, items, known)
  others = len(known.keys() - {item.key for item in items})
  return Changes(len(new), len(items), changed, others, version, is_new)


def _write_settings(connection: sa.Connection, settings: Settings) -> None:
  values = dataclasses.asdict(settings)
  table = schema.project
  done = connection.execute(
    sa.update(table).where(table.c.id == 1).values(settings=values)
  )
  if not done.rowcount:
    connection.execute(sa.insert(table).values(id=1, settings=values))


def _write_instructions(
  connection: sa.Connection, markdown: str, now: float
) -> tuple[int, bool]:
  """Stores instructions; returns their version and whether it is new."""
  current = _newest_instructions(connection)
  if current is not None and current[1] == markdown:
    return current[0], False
  version = current[0] + 1 if current else 1
  connection.execute(
    sa.insert(schema.instructions).values(
      version=version, markdown=markdown, created_at=now
    )
  )
  return version, True


def _has_had(connection: sa.Connection, markdown: str) -> bool:
  """Returns whether a version of the instructions has had a text."""
  table = schema.instructions
  query = sa.select(table.c.version).where(table.c.markdown == markdown)
  return connection.execute(query.limit(1)).first() is not None


def _newest_instructions(connection: sa.Connection) -> tuple[int, str] | None:
  table = schema.instructions
  row = connection.execute(
    sa.select(table.c.version, table.c.markdown)
    .order_by(table.c.version.desc())
    .limit(1)
  ).first()
  return None if row is None else (row.version, row.markdown)


def _known_items(connection: sa.Connection) -> dict[str, sa.Row]:
  """Returns key -> row of the store's items."""
  return {
    item_files.key_of(row.task, row.payload): row
    for row in connection.execute(sa.select(schema.items))
  }


def _update_items(
  connection: sa.Connection,
  items: Iterable[NewItem],
  known: Mapping[str, sa.Row],
) -> int:
  """Updates what may change of an item; returns the number of changed ones."""
  table = schema.items
  names = ("payload", "kind", "overlap", "gold")
  changed = 0
  for item in items:
    row = known.get(item.key)
    values = {name: getattr(item, name) for name in names}
    if row is None or values == {name: row._mapping[name] for name in names}:
      continue
    changed += 1
    connection.execute(
      sa.update(table).where(table.c.id == row.id).values(**values)
    )
  return changed


def read_settings(store: Store) -> Settings:
  """Returns the settings of a store's project.

  Raises:
    UserError: the store has no project.
  """
  with store.read() as connection:
    value = connection.execute(
      sa.select(schema.project.c.settings).where(schema.project.c.id == 1)
    ).scalar()
  if value is None:
    raise UserError(
      "the store has no project",
      file=store.name,
      fix="add --project=PROJECT.json, or make one with"
      " python -m instructgpt_jax.labeling create",
      code="no_project",
    )
  names = {field.name for field in dataclasses.fields(Settings)}
  return Settings(**{k: v for k, v in value.items() if k in names})


def read_instructions(store: Store) -> tuple[int, str]:
  """Returns the version and the Markdown text of the newest instructions."""
  with store.read() as connection:
    return _newest_instructions(connection) or (0, "")


def write_instructions(store: Store, markdown: str, now: float) -> int:
  """Stores new instructions; returns their version.

  Text that is equal to the newest version is not stored again.
  """
  with store.begin() as connection:
    return _write_instructions(connection, markdown, now)[0]


def as_json(
  settings: Settings, entries: Iterable[Mapping[str, Any]], instructions: str
) -> dict[str, Any]:
  """Returns the value of PROJECT.json; settings with defaults are left out."""
  default = Settings()
  value: dict[str, Any] = {"title": settings.title}
  if instructions:
    value["instructions"] = instructions
  for name, setting in dataclasses.asdict(settings).items():
    is_close = isinstance(setting, float) and math.isclose(
      setting, getattr(default, name)
    )
    if setting != getattr(default, name) and not is_close:
      value[name] = setting
  return {**value, "items": [dict(entry) for entry in entries]}
