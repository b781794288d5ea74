"""Command line → config → workdir → run, with short errors."""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import os
import re
import sys
import textwrap
import threading
from collections.abc import Callable, MutableMapping, Sequence
from importlib import metadata, util
from typing import Any, TypeVar

from instructgpt_jax import configs, streams
from instructgpt_jax.cli import flags
from instructgpt_jax.distributed import preemption, processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import claims, files

T = TypeVar("T")

USER_ERROR = 2
INTERRUPTED = 130
_LINES = 3
_LONG = 0.2  # seconds of compiling, after which there is memory to give back
_OBJECTS = 50_000  # made since, before Python looks for garbage; 700 is usual
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name for it
# Flags whose text is read by a tokenizer; those of paths may hold any bytes.
_TEXTS = (
  "user_tag",
  "assistant_tag",
  "turn_separator",
  "prefix",
  "prefixes",
  "refusal",
)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
_PRETENDED = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def main(
  experiment: str,
  get_config: Callable[[str], T],
  run: Callable[[T, str], Any],
  doc: str = "",
  *,
  argv: Sequence[str] | None = None,
  default_preset: str = "",
  presets: Sequence[str] = (),
  resolve: Callable[[T], T] = lambda config: config,
) -> int:
  """Runs an experiment from its command line; `sys.exit` what it returns.

  Args:
    experiment: its name, written into the workdir's config.json.
    get_config: preset name → config.
    run: the loop, called with (config, workdir).
    doc: the experiment's docstring for `--help`.
    argv: arguments; the process's own when None.
    default_preset: preset when none is given.
    presets: names of the presets for `--help`.
    resolve: completes the config from other files, before it is written.

  Returns:
    Exit status: 0, also after SIGTERM; 2 after a user's mistake, 130 after an
    interrupt.
  """
  streams.accept_all_text()
  argv = sys.argv[1:] if argv is None else argv

  def launch():
    try:
      config, workdir = flags.parse(
        argv,
        get_config,
        doc=doc,
        experiment=experiment,
        default_preset=default_preset,
        presets=presets,
      )
    except flags.Help as text:
      print(text, end="")
      return
    _require_text(config)
    silence_libraries()
    set_cpu_device_threads()
    trim_malloc_after_compile()
    tune_gc()
    section = getattr(config, "processes", configs.Processes())
    with processes.distributed_context(section, _all_flags(config, workdir)):
      _run(config, workdir)

  def _run(config, workdir):
    config = resolve(config)
    values = flags.config_to_dict(config)
    with claims.claim(workdir, experiment, values):
      settings = getattr(config, "run", None)
      if settings is not None:
        use_compile_cache(settings.compile_cache)
      run(config, workdir)

  with preemption.exit_on_sigterm():
    status = run_with_errors(launch)
  if status:
    processes.exit_after_error(status)
  return status


def _require_text(config: Any) -> None:
  """Refuses bytes that are not UTF-8 in flags that end up in prompts."""
  for name, value, _ in flags.leaves(config):
    if name.split(".")[-1] in _TEXTS and not streams.is_utf8(value):
      raise UserError(
        "is not valid UTF-8",
        field=f"--{name}",
        fix="give it in UTF-8, whatever the encoding of the terminal",
        code="not_utf8",
      )


def _all_flags(config: Any, workdir: str) -> dict[str, Any]:
  """What all processes of a run must have been told alike."""
  leaves = {name: value for name, value, _ in flags.leaves(config)}
  return {
    name: value
    for name, value in {**leaves, "workdir": workdir}.items()
    if not name.startswith("processes.")
  }


def run_with_errors(body: Callable[[], Any]) -> int:
  """Calls `body`; its exit status, with a user's mistake in three lines."""
  streams.accept_all_text()
  try:
    body()
    sys.stdout.flush()
  except UserError as error:
    print(error_text(error), file=sys.stderr)
    return USER_ERROR
  except preemption.Preempted:
    print(preemption.STOPPED, file=sys.stderr)
  except KeyboardInterrupt:
    print(
      "interrupted; the same command goes on from the last checkpoint",
      file=sys.stderr,
    )
    return INTERRUPTED
  except BrokenPipeError:
    # Whoever read our output has closed it; Python would complain at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    if error.errno in _DISK:
      known = files.disk_error(error, error.filename or "the disk")
    elif error.errno in _PATHS and error.filename is not None:
      known = UserError(
        f"cannot be used: {error.strerror}",
        file=os.fsdecode(error.filename),
        fix="check the path and its permissions",
        code="unusable_path",
      )
    else:
      raise
    print(error_text(known), file=sys.stderr)
    return USER_ERROR
  return 0


def error_text(error: UserError) -> str:
  """The error in at most three lines of at most 300 characters."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  if len(lines) > _LINES:
    lines = [*lines[: _LINES - 1], lines[-1]]
  lines[0] = f"error: {lines[0]}"
  return "\n".join(
    textwrap.shorten(line, 300, placeholder=" …") if len(line) > 300 else line
    for line in lines
  )


def silence_libraries() -> None:
  """Keeps the libraries' own lines off the screen.

  On a full disk orbax logs a traceback in each of its threads, and tensorstore
  has one for each write that nobody waits for any more. The error itself is
  raised as well, and told in three lines.
  """
  from absl import logging

  _without_tpu()
  logging.set_verbosity(logging.FATAL)
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _unraisable


def _without_tpu() -> None:
  """Leaves a libtpu alone that is here for plans only.

  JAX would load it, 70 MB, and let it say at length that there is no TPU.
  """
  import jax

  no_chip = os.environ.get("TPU_SKIP_MDS_QUERY") == "1"  # JAX has looked
  others = util.find_spec("jax_plugins") or metadata.entry_points(
    group="jax_plugins"
  )
  if no_chip and util.find_spec("libtpu") and not others:
    if jax.config.jax_platforms is None:
      jax.config.update("jax_platforms", "cpu")


def _unraisable(found: Any) -> None:
  main = threading.current_thread() is threading.main_thread()
  if main or found.object is not None:
    sys.__unraisablehook__(found)


def set_cpu_device_threads(env: MutableMapping[str, str] = os.environ) -> None:
  """Gives the devices that XLA_FLAGS make of a CPU two threads each.

  XLA runs a program on all of them, and what comes next, in one pool. With a
  thread for each device, those in a collective may wait for ever for one that
  finds no thread, and XLA ends the process after 40 seconds.
  """
  found = _PRETENDED.search(env.get("XLA_FLAGS", ""))
  if found:
    env.setdefault("PJRT_NPROC", str(2 * int(found[1])))


@functools.cache
def trim_malloc_after_compile() -> None:
  """Has what a compilation leaves behind returned to the system.

  glibc keeps freed memory for later; after a few programs of XLA's that is a
  third of what a small run holds.
  """
  if os.name != "posix":
    return
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is None:
    return  # Not glibc.
  from jax import monitoring

  def listen(event: str, seconds: float, **unused: Any) -> None:
    if event == _COMPILED and seconds > _LONG:
      trim(0)

  monitoring.register_event_duration_secs_listener(listen)


@functools.cache
def tune_gc() -> None:
  """Has Python look for garbage less often, and not in what is imported.

  Tracing a program makes a million objects, most of which stay; looking through
  them again and again takes a tenth of a start.
  """
  gc.freeze()
  gc.set_threshold(_OBJECTS)


def use_compile_cache(setting: str) -> None:
  """Keeps compiled programs in a folder, for later runs to load.

  Args:
    setting: the folder; "" is one in the user's cache, unless JAX's own
      variable names another; "none" keeps nothing.
  """
  if (
    setting == "none"
    or not setting
    and "JAX_COMPILATION_CACHE_DIR" in os.environ
  ):
    return
  import jax

  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  directory = setting or os.path.join(home, "instructgpt_jax", "compiled")
  try:
    files.make_directory(directory)
  except UserError:
    if setting:
      raise
    return  # A home that cannot be written to costs time, not the run.
  jax.config.update("jax_compilation_cache_dir", os.path.abspath(directory))
  # The many small programs of a start are quicker read than compiled.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
