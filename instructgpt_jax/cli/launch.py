"""Runs an experiment from its command line, and prints short errors.

The order is: flags → config → processes → workdir → run → outcome.
"""

from __future__ import annotations

import errno
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from instructgpt_jax import configs, streams
from instructgpt_jax.cli import compile_cache, flags, process_settings
from instructgpt_jax.cli.outcome import outcome
from instructgpt_jax.distributed import preemption, processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import claims, files, trackers
from instructgpt_jax.runs.progress import log_line

T = TypeVar("T")

USER_ERROR = 2
INTERRUPTED = 130
_MAX_ERROR_LINES = 3
# Flags whose text a tokenizer reads. Paths may contain any bytes.
_TEXT_FLAGS = (
  "user_tag",
  "assistant_tag",
  "turn_separator",
  "prefix",
  "prefixes",
  "refusal",
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


def main(
  experiment: str,
  get_config: Callable[[str], T],
  run: Callable[[T, str], Any],
  doc: str = "",
  *,
  argv: Sequence[str] | None = None,
  default_preset: str = "",
  choose_preset: Callable[[T], str] | None = None,
  presets: Sequence[str] = (),
  resolve: Callable[[flags.Call, str], Any] = lambda call, _: call.config,
) -> int:
  """Runs an experiment from its command line.

  Args:
    experiment: name of the experiment, written into config.json.
    get_config: returns the config of a preset.
    run: trains or evaluates; called with (config, workdir).
    doc: the experiment's docstring for `--help`.
    argv: arguments; those of the process when None.
    default_preset: preset used without --preset.
    choose_preset: returns a better default for a config that was made with
      `default_preset`.
    presets: names of the presets for `--help`.
    resolve: returns the config, completed from other files before it is
      recorded; called with the command line and the experiment's name.

  Returns:
    Exit status for `sys.exit`: 0, also after SIGTERM; 2 after a user error; 130
    after an interrupt.
  """
  streams.accept_all_text()
  argv = sys.argv[1:] if argv is None else argv

  def parse_and_run():
    try:
      call = flags.parse_call(
        argv,
        get_config,
        doc=doc,
        experiment=experiment,
        default_preset=default_preset,
        choose_preset=choose_preset,
        presets=presets,
      )
    except flags.Help as text:
      print(text, end="")
      return
    config, workdir = call.config, call.workdir
    _require_text(config)
    settings = getattr(config, "run", None)
    if settings is not None:
      trackers.require_usable(settings)
    process_settings.silence_libraries()
    process_settings.set_cpu_device_threads()
    process_settings.trim_malloc_after_compile()
    process_settings.tune_gc()
    section = getattr(config, "processes", configs.Processes())
    with processes.distributed_context(section, _all_flags(config, workdir)):
      run_in_workdir(call)

  def run_in_workdir(call):
    config, workdir = resolve(call, experiment), call.workdir
    values = flags.config_to_dict(config)
    with claims.claim(workdir, experiment, values):
      settings = getattr(config, "run", None)
      if settings is not None:
        compile_cache.use_compile_cache(settings.compile_cache)
      run(config, workdir)
    log_line(outcome(experiment, workdir))

  with preemption.exit_on_sigterm():
    status = run_with_errors(parse_and_run)
  if status:
    processes.exit_after_error(status)
  return status


def _require_text(config: Any) -> None:
  """Refuses flags that become part of prompts and are not UTF-8."""
  for name, value, _ in flags.leaves(config):
    if name.split(".")[-1] in _TEXT_FLAGS and not streams.is_utf8(value):
      raise UserError(
        "is not valid UTF-8",
        field=f"--{name}",
        fix="pass the value in UTF-8, whatever the terminal's encoding",
        code="not_utf8",
      )


def _all_flags(config: Any, workdir: str) -> dict[str, Any]:
  """Returns the flags that must be equal in all processes of a run."""
  leaves = {name: value for name, value, _ in flags.leaves(config)}
  return {
    name: value
    for name, value in {**leaves, "workdir": workdir}.items()
    if not name.startswith("processes.")
  }


def run_with_errors(body: Callable[[], Any]) -> int:
  """Calls `body`, prints its user errors, and returns the exit status."""
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
      "Interrupted. Rerun the same command to resume from the last checkpoint.",
      file=sys.stderr,
    )
    return INTERRUPTED
  except BrokenPipeError:
    # The reader of stdout has closed it; Python would print an error at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    if error.errno in _DISK_ERRORS:
      user_error = files.disk_error(error, error.filename or "the disk")
    elif error.errno in _PATH_ERRORS and error.filename is not None:
      user_error = UserError(
        f"cannot be used: {error.strerror}",
        file=os.fsdecode(error.filename),
        fix="check the path and its permissions",
        code="unusable_path",
      )
    else:
      raise
    print(error_text(user_error), file=sys.stderr)
    return USER_ERROR
  return 0


def error_text(error: UserError) -> str:
  """Formats an error in at most three lines of at most 300 characters."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  if len(lines) > _MAX_ERROR_LINES:
    lines = [*lines[: _MAX_ERROR_LINES - 1], lines[-1]]
  lines[0] = f"error: {lines[0]}"
  return "\n".join(
    textwrap.shorten(line, 300, placeholder=" …") if len(line) > 300 else line
    for line in lines
  )
