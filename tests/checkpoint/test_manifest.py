"""Checksums detect every kind of damage, and name the file."""

import pytest

from instructgpt_jax.checkpoint import manifest
from instructgpt_jax.errors import UserError

NAMES = ("info", "d/large", "d/empty")


@pytest.fixture
def directory(tmp_path):
  (tmp_path / "d").mkdir()
  (tmp_path / "info").write_bytes(b"\x00information")
  (tmp_path / "d" / "large").write_bytes(bytes(range(256)) * 40_000)
  (tmp_path / "d" / "empty").touch()
  manifest.write(tmp_path, score=-0.25)
  return tmp_path


def test_undamaged_directory_has_no_problem(directory):
  assert manifest.find_damage(directory) == ""
  assert manifest.read(directory) == {"score": -0.25}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["flipped", "shorter", "longer", "missing"])
def test_damage_is_detected_and_named(directory, name, kind):
  path = directory / name
  content = bytearray(path.read_bytes())
  if kind == "missing":
    path.unlink()
  elif kind == "longer" or not content:
    path.write_bytes(content + b"\0")
  elif kind == "shorter":
    path.write_bytes(content[:-1])
  else:
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
  assert name in manifest.find_damage(directory)
  # A shallow check omits files in subdirectories.
  assert bool(manifest.find_damage(directory, deep=False)) == (name == "info")
  # Of three processes that share the work, one finds the damage.
  shares = [manifest.find_damage(directory, i, 3) for i in range(3)]
  assert sum(map(bool, shares)) == 1


def test_damaged_manifest_is_detected(directory):
  path = directory / manifest.MANIFEST
  content = path.read_bytes()
  for i in range(len(content.rstrip())):
    path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
    if not manifest.find_damage(directory):
      # Only white space between values may differ.
      assert content[i : i + 1].isspace()
    path.write_bytes(content[:i])
    assert manifest.MANIFEST in manifest.find_damage(directory)
  path.unlink()
  assert (
    manifest.find_damage(directory)
    == f"{manifest.MANIFEST}: there is no such file"
  )
  with pytest.raises(UserError):
    manifest.read(directory)
