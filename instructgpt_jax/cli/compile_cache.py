"""JAX's persistent cache of compiled programs."""

from __future__ import annotations

import os

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

# JAX's default of 1 s would leave out the many small programs of a start-up.
_MIN_COMPILE_SECONDS = 0.05


def use_compile_cache(setting: str) -> None:
  """Stores compiled programs in a directory, from which later runs load them.

  Args:
    setting: the directory. "" is a directory in the user's cache, unless
      JAX_COMPILATION_CACHE_DIR is set; "none" disables the cache.

  Raises:
    UserError: a directory named by `setting` cannot be made.
  """
  if setting == "none":
    return
  if not setting and "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  import jax

  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  directory = setting or os.path.join(home, "instructgpt_jax", "compiled")
  try:
    files.make_directory(directory)
  except UserError:
    if setting:
      raise
    return  # The run works without a cache in an unwritable home directory.
  jax.config.update("jax_compilation_cache_dir", os.path.abspath(directory))
  jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS
  )
