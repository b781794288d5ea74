"""Memory of the device at hand."""

import pytest

from instructgpt_jax.recipes import device

MEMINFO = "MemTotal:       200 kB\nMemFree: 10 kB\nMemAvailable:   100 kB\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
  """Returns a function that writes the system's files."""
  meminfo, container = tmp_path / "meminfo", tmp_path / "memory.max"
  monkeypatch.setattr(device, "_MEMINFO", str(meminfo))
  monkeypatch.setattr(device, "_CONTAINER_LIMITS", (str(container),))

  def write(system=None, limit=None):
    for path, text in ((meminfo, system), (container, limit)):
      if text is not None:
        path.write_text(text)

  return write


def test_free_memory_of_the_system_and_of_a_container(files):
  files(MEMINFO)
  assert device.available_memory() == 100 * 1024
  files(limit="max\n")
  assert device.available_memory() == 100 * 1024
  files(limit="5000\n")
  assert device.available_memory() == 5000


def test_without_these_files_it_is_the_physical_memory(files):
  files()
  memory = device.available_memory()
  assert memory is None or memory > 2**20


def test_the_device_of_this_process(files):
  files(MEMINFO)
  actual = device.find_device()
  assert actual.platform == "cpu"
  assert actual.memory is not None and 0 < actual.memory < 100 * 1024
