"""Opens a labeling store: a SQLite file or a PostgreSQL database.

  store = open_store("labels.db")
  with store.begin() as connection:  # a write transaction, on disk at its end
    connection.execute(...)
  with store.read() as connection:  # one snapshot, which no writer disturbs
    ...

Write transactions run one after the other, on PostgreSQL as well, so that what
a transaction has read still holds when it writes. Failures of the database are
UserErrors: of a full disk, a locked or damaged file, a lost connection.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import sqlite3
import stat
import threading
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc, pool

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import migrations, schema
from instructgpt_jax.runs import files

_MAX_ID = 2**63 - 1
_WAIT_SECONDS = 30.0
_WRITE = "labeling_write"
_ADVISORY_LOCK = schema.APPLICATION_ID
_CREATE = "python -m instructgpt_jax.labeling create"

# SQLite's name of an error, or PostgreSQL's SQLSTATE → code, problem, fix.
_FULL = (
  "disk_full",
  "could not be written: the disk is full",
  "free some space and try again; what was saved before is complete",
)
_BUSY = (
  "store_locked",
  "is locked by another program",
  "end the program that writes it, and try again",
)
_DAMAGED = (
  "damaged_store",
  "is damaged",
  "restore a copy of the file, with its -wal file if there is one",
)
_FOREIGN = (
  "not_a_store",
  "is not a labeling store",
  f"choose another --store, or make one with {_CREATE}",
)
_NOT_WRITABLE = (
  "not_writable",
  "is not writable",
  "make the file and its directory writable for this user",
)
_UNREACHABLE = (
  "store_unreachable",
  "does not answer",
  "start the database server, and check host, port, name and password",
)
_PROBLEMS = {
  "SQLITE_FULL": _FULL,
  "SQLITE_BUSY": _BUSY,
  "SQLITE_LOCKED": _BUSY,
  "SQLITE_PROTOCOL": _BUSY,
  "SQLITE_CORRUPT": _DAMAGED,
  "SQLITE_NOTADB": _FOREIGN,
  "SQLITE_READONLY": _NOT_WRITABLE,
  "SQLITE_CANTOPEN": (
    "store_not_opened",
    "could not be opened",
    "check that the file and its directory can be read and written",
  ),
  "SQLITE_IOERR": (
    "disk_error",
    "could not be read or written",
    "check that the disk has space, is available, and allows files of this"
    " size, and try again; what was saved before is complete",
  ),
  "53100": _FULL,
  "53300": _UNREACHABLE,
  "55P03": _BUSY,
  "25006": _NOT_WRITABLE,
  "42501": _NOT_WRITABLE,
}


class Store:
  """An open store.

  Attributes:
    engine: SQLAlchemy's engine.
    name: path or address, without a password, for messages.
  """

  def __init__(self, engine: sa.Engine, name: str, path: str = ""):
    self.engine, self.name = engine, name
    self._is_sqlite = engine.dialect.name == "sqlite"
    self._writing = engine.execution_options(**{_WRITE: True})
    # Threads of this process queue here, without the pauses of SQLite's
    # polling.
    self._writer = threading.Lock()
    self._local = threading.local()
    self._path, self._file = path, _file_number(path)

  @contextlib.contextmanager
  def begin(self) -> Iterator[sa.Connection]:
    """Runs a write transaction; at its end all of it is on the disk.

    An exception in the block undoes it. One transaction writes at a time.

    Raises:
      UserError: the store cannot be written. Nothing was changed.
    """
    if getattr(self._local, "writing", False):
      raise RuntimeError("a write transaction inside a write transaction")
    if not self._writer.acquire(timeout=_WAIT_SECONDS):
      raise self._error(*_BUSY)
    self._local.writing = True
    try:
      with self._translated_errors():
        with self._writing.connect() as connection, connection.begin():
          self._check_file()
          yield connection
    finally:
      self._local.writing = False
      self._writer.release()

  @contextlib.contextmanager
  def read(self) -> Iterator[sa.Connection]:
    """Reads one snapshot, which neither waits for writers nor disturbs them.

    Raises:
      UserError: the store cannot be read.
    """
    with self._translated_errors():
      with self.engine.connect() as connection, connection.begin():
        yield connection

  def _check_file(self) -> None:
    """Refuses to write a file that was removed, and would be lost."""
    if _file_number(self._path) != self._file:
      raise UserError(
        "was removed or replaced while it was open",
        file=self.name,
        fix="put the file back if it was moved, and start this program again",
        code="store_replaced",
      )

  def close(self) -> None:
    """Closes the connections that no transaction uses."""
    self.engine.dispose()

  def _error(self, code: str, problem: str, fix: str) -> UserError:
    return UserError(problem, file=self.name, fix=fix, code=code)

  @contextlib.contextmanager
  def _translated_errors(self) -> Iterator[None]:
    try:
      yield
    except (exc.DBAPIError, exc.TimeoutError) as error:
      problem = _problem(error)
      if problem is None:
        raise
      raise self._error(*problem) from error


def _file_number(path: str) -> tuple[int, int] | None:
  """Returns device and inode of a file; None if there is none, or no path."""
  try:
    status = os.stat(path)
  except OSError:
    return None
  return status.st_dev, status.st_ino


def _problem(error: Exception) -> tuple[str, str, str] | None:
  """Returns code, problem and fix of a database's error, if it is known."""
  if isinstance(error, exc.TimeoutError):
    return _BUSY
  cause = getattr(error, "orig", None)
  name = getattr(cause, "sqlite_errorname", None)
  if name is not None:
    # The primary name of extended ones, such as SQLITE_IOERR_WRITE.
    return _PROBLEMS.get("_".join(name.split("_")[:2]))
  state = getattr(cause, "sqlstate", None)
  if state in _PROBLEMS:
    return _PROBLEMS[state]
  if getattr(error, "connection_invalidated", False):
    return _UNREACHABLE
  is_server_error = isinstance(error, exc.OperationalError)
  return _UNREACHABLE if is_server_error and state is None else None


def open_store(
  location: str | os.PathLike[str], *, create: bool = False
) -> Store:
  """Opens a store, and upgrades one of an older version.

  Args:
    location: path of a SQLite file, or URL of a PostgreSQL database
      (`postgresql://USER:PASSWORD@HOST/NAME`).
    create: whether to make the store if there is none. One that exists is
      opened.

  Raises:
    UserError: there is no store, it is of a newer version, another kind of
      file, locked, damaged, or cannot be reached, read or written.
  """
  text = os.fspath(location)
  if text.startswith("sqlite:///"):
    text = text.removeprefix("sqlite:///")
  if "://" in text:
    store = Store(_postgresql_engine(text), _without_password(text))
  else:
    _check_path(text, create)
    if create:
      _make_private(text)
    path = os.path.abspath(text)
    store = Store(_sqlite_engine(path), text, path)
  try:
    with store._translated_errors():
      _prepare(store, create)
  except BaseException:
    store.close()
    raise
  return store


def is_id(value: int) -> bool:
  """Whether a number can be the id of a row."""
  return 0 < value <= _MAX_ID


def _prepare(store: Store, create: bool) -> None:
  """Checks the version of a store, and makes or upgrades its tables."""
  with store.engine.connect() as connection:
    version = _version(connection, store)
  if version is None and not create:
    raise UserError(
      "holds no labeling store",
      file=store.name,
      fix=f"make one with {_CREATE} --store={store.name}",
      code="no_store",
    )
  if store._is_sqlite:
    _write_ahead(store)
  if version == migrations.NEWEST:
    return
  # Another process may make or upgrade the store at the same time.
  with store.begin() as connection:
    if _version(connection, store) != migrations.NEWEST:
      if store._is_sqlite:
        connection.exec_driver_sql(
          f"PRAGMA application_id = {schema.APPLICATION_ID}"
        )
      migrations.upgrade(connection)


def _version(connection: sa.Connection, store: Store) -> str | None:
  """Returns the version of a store's tables, or None for an empty database.

  Raises:
    UserError: the tables are of another program, or of a newer version.
  """
  tables = set(sa.inspect(connection).get_table_names())
  if store._is_sqlite and tables:
    number = connection.exec_driver_sql("PRAGMA application_id").scalar()
    if number != schema.APPLICATION_ID:
      raise store._error(*_FOREIGN)
  if schema.VERSION_TABLE not in tables:
    if tables & set(schema.metadata.tables):
      raise store._error(*_FOREIGN)
    return None
  version = migrations.current_version(connection)
  if version not in migrations.versions():
    raise UserError(
      f"was written by a newer version of this program (version {version} of"
      f" the tables; this program has {migrations.NEWEST})",
      file=store.name,
      fix="update instructgpt_jax, or use the program that wrote it",
      code="newer_store",
    )
  return version


def _check_path(path: str, create: bool) -> None:
  """Checks what can be said of a file before SQLite opens it."""
  if not path:
    raise UserError(
      "the path is empty",
      field="--store",
      fix="choose a file, such as labels.db",
      code="store_not_opened",
    )
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    mode = None
  except (OSError, ValueError) as error:
    raise UserError(
      f"cannot be read: {getattr(error, 'strerror', None) or error}",
      file=path,
      fix="choose another --store",
      code="store_not_opened",
    ) from error
  if mode is not None:
    if not stat.S_ISREG(mode):
      raise UserError(
        "is not a file",
        file=path,
        fix="choose a file, such as labels.db",
        code="not_a_store",
      )
  elif not pathlib.Path(path).absolute().parent.is_dir():
    raise UserError(
      "the directory does not exist",
      file=str(pathlib.Path(path).parent),
      fix="make the directory, or choose another --store",
      code="no_directory",
    )
  elif not create:
    raise UserError(
      "does not exist",
      file=path,
      fix=f"make it with {_CREATE} --store={path}",
      code="no_store",
    )


def _make_private(path: str) -> None:
  """Makes a file that others cannot read; it will hold hashes of passwords.

  SQLite gives its other files the same permissions.
  """
  with files.disk_errors_as_user_errors(path):
    try:
      os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
      pass


def _sqlite_engine(path: str) -> sa.Engine:
  def connect() -> sqlite3.Connection:
    connection = sqlite3.connect(
      path,
      timeout=_WAIT_SECONDS,
      isolation_level=None,  # transactions begin in `begin` below
      check_same_thread=False,
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # matters on macOS only
    return connection

  engine = _engine("sqlite://", creator=connect, poolclass=pool.QueuePool)

  @event.listens_for(engine, "begin")
  def begin(connection: sa.Connection) -> None:
    writes = _WRITE in connection.get_execution_options()
    execute = connection.exec_driver_sql
    execute(f"PRAGMA query_only = {int(not writes)}")
    execute("BEGIN IMMEDIATE" if writes else "BEGIN")

  return engine


def _write_ahead(store: Store) -> None:
  """Makes a SQLite file keep a write-ahead log, so that readers never wait."""
  connection = store.engine.raw_connection()
  try:
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only = 0")
    cursor.execute("PRAGMA journal_mode = WAL")
    mode = cursor.fetchone()
    cursor.close()
  except sqlite3.Error as error:
    problem = _PROBLEMS.get("_".join(error.sqlite_errorname.split("_")[:2]))
    if problem is None:
      raise
    raise store._error(*problem) from error
  finally:
    connection.close()
  if mode != ("wal",):
    raise UserError(
      "is on a file system without shared memory",
      file=store.name,
      fix="choose a --store on a local disk",
      code="no_write_ahead",
    )


def _postgresql_engine(url: str) -> sa.Engine:
  try:
    address = sa.engine.make_url(url)
    scheme = address.drivername.split("+")[0]
  except (exc.ArgumentError, ValueError) as error:
    raise _url_error(url) from error
  if scheme not in ("postgresql", "postgres") or not address.database:
    raise _url_error(url)
  try:
    engine = _engine(
      address.set(drivername="postgresql+psycopg"),
      pool_pre_ping=True,
      connect_args={"connect_timeout": 10},
    )
  except ImportError as error:
    raise UserError(
      "PostgreSQL needs the package psycopg, which is not installed",
      field="--store",
      fix="pip install 'psycopg[binary]' (extra 'postgresql'), or choose a"
      " file",
      code="missing_package",
    ) from error

  @event.listens_for(engine, "begin")
  def begin(connection: sa.Connection) -> None:
    execute = connection.exec_driver_sql
    if _WRITE in connection.get_execution_options():
      execute(f"SET LOCAL lock_timeout = {int(_WAIT_SECONDS * 1000)}")
      execute(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    else:
      execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

  return engine


def _engine(url: str | sa.URL, **options: Any) -> sa.Engine:
  return sa.create_engine(
    url,
    json_serializer=functools.partial(
      json.dumps, allow_nan=False, separators=(",", ":")
    ),
    # A log must not have what people wrote, or hashes of their passwords.
    hide_parameters=True,
    pool_size=16,
    max_overflow=48,
    pool_timeout=_WAIT_SECONDS,
    **options,
  )


def _without_password(url: str) -> str:
  return sa.engine.make_url(url).render_as_string(hide_password=True)


def _url_error(url: str) -> UserError:
  return UserError(
    f"a URL that begins with {url.split('://')[0]}:// is no store",
    field="--store",
    fix="choose the path of a file, or"
    " postgresql://USER:PASSWORD@HOST/DATABASE",
    code="store_url",
  )
