"""A new store, and quick passwords."""

import importlib.util
import os

import pytest

from instructgpt_jax.labeling import store
from instructgpt_jax.labeling.people import passwords
from tests.interop import tiny

# Pages need Starlette; make test installs it.
collect_ignore_glob = []
if not (importlib.util.find_spec("starlette") or os.environ.get(tiny.REQUIRED)):
  collect_ignore_glob += ["test_web*.py", "test_browser.py"]


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch):
  """Makes scrypt cheap; `test_people.py` tests its real cost."""
  monkeypatch.setattr(passwords, "_SCRYPT_N", 2)
  monkeypatch.setattr(passwords, "_SCRYPT_P", 1)


@pytest.fixture(autouse=True)
def patient_writers(monkeypatch):
  """Lets writers wait for long, because a test machine can be slow."""
  monkeypatch.setattr(store, "_WAIT_SECONDS", 600.0)


@pytest.fixture
def new_store(tmp_path):
  """Returns an empty store."""
  made = store.open_store(tmp_path / "labels.db", create=True)
  yield made
  made.close()
