"""Persistent cache of compiled programs."""

import os

import jax
import pytest

from instructgpt_jax.cli import compile_cache
from instructgpt_jax.errors import UserError


@pytest.fixture
def cache_settings(monkeypatch):
  """Records the settings that are passed to JAX."""
  settings = {}
  monkeypatch.setattr(jax.config, "update", settings.__setitem__)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  return settings


def test_default_is_the_users_cache(cache_settings, monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  compile_cache.use_compile_cache("")
  directory = cache_settings["jax_compilation_cache_dir"]
  assert directory == str(tmp_path / "home" / "instructgpt_jax" / "compiled")
  assert os.path.isdir(directory)
  compile_cache.use_compile_cache(str(tmp_path / "named"))
  assert cache_settings["jax_compilation_cache_dir"] == str(tmp_path / "named")


def test_cache_is_off_if_disabled_or_set_in_jax(
  cache_settings, monkeypatch, tmp_path
):
  compile_cache.use_compile_cache("none")
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  compile_cache.use_compile_cache("")  # It cannot be made; the run continues.
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
  compile_cache.use_compile_cache("")
  assert not cache_settings
  with pytest.raises(UserError):
    compile_cache.use_compile_cache(str(tmp_path / "file" / "below"))
