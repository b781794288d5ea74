"""Checksums tell every kind of damage, and name the file."""

import pytest

from instructgpt_jax.checkpoint import manifest
from instructgpt_jax.errors import UserError

NAMES = ("info", "d/large", "d/empty")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "d").mkdir()
  (tmp_path / "info").write_bytes(b"\x00information")
  (tmp_path / "d" / "large").write_bytes(bytes(range(256)) * 40_000)
  (tmp_path / "d" / "empty").touch()
  manifest.write(tmp_path, score=-0.25)
  return tmp_path


def test_a_whole_folder_has_no_problem(folder):
  assert manifest.find_damage(folder) == ""
  assert manifest.read(folder) == {"score": -0.25}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["flipped", "shorter", "longer", "missing"])
def test_damage_is_found_and_named(folder, name, kind):
  path = folder / name
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
  assert name in manifest.find_damage(folder)
  # A look at the small files alone leaves out those in inner folders.
  assert bool(manifest.find_damage(folder, deep=False)) == (name == "info")
  # Each of three processes looks at its share, and one of them finds it.
  found = [manifest.find_damage(folder, part, 3) for part in range(3)]
  assert sum(map(bool, found)) == 1


def test_a_manifest_guards_itself(folder):
  path = folder / manifest.MANIFEST
  whole = path.read_bytes()
  for i in range(len(whole.rstrip())):
    path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
    if not manifest.find_damage(folder):
      # Only what stands between two values may differ without harm.
      assert whole[i : i + 1].isspace()
    path.write_bytes(whole[:i])
    assert manifest.MANIFEST in manifest.find_damage(folder)
  path.unlink()
  assert (
    manifest.find_damage(folder)
    == f"{manifest.MANIFEST}: there is no such file"
  )
  with pytest.raises(UserError):
    manifest.read(folder)
