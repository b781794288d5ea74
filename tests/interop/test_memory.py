"""A checkpoint of 2 GB goes through little memory."""

import json
import math
import os
import struct
import subprocess
import sys

import pytest

from instructgpt_jax import configs
from instructgpt_jax.interop import directory, families, mapping, tensors
from tests.interop import ours

LARGEST = 24_000 * 2048 * 4  # bytes: the embedding
ALLOWED = LARGEST + 300 * 10**6

SCRIPT = """
import sys
from instructgpt_jax.hub.__main__ import export_model, import_model

def peak():
  # Not getrusage: what it tells began with the parent's memory.
  with open("/proc/self/status") as file:
    (line,) = [line for line in file if line.startswith("VmHWM:")]
  return int(line.split()[1]) * 1024

what, small, large, to = sys.argv[1:]
move = {"import": import_model, "export": export_model}[what]
move(small, to + "/small")
before = peak()
move(large, to + "/large")
print(peak() - before)
"""


def make(path, c):
  """A directory whose tensors are a hole in the file: zeros."""
  family = families.FAMILIES["gpt2"]
  extent = mapping.sizes(c, c.vocab_size)
  header, at = {}, 0
  for weight, _, name in directory.expanded(family, c, False):
    shape = weight.shape(extent)
    end = at + 4 * math.prod(shape)
    header[name] = {
      "dtype": "F32",
      "shape": shape,
      "data_offsets": [at, end],
    }
    at = end
  path.mkdir()
  text = json.dumps(header).encode()
  with open(path / tensors.WHOLE, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + at)
  described = family.theirs(families.canonical(c))
  (path / directory.CONFIG).write_text(json.dumps(described))
  return at


@pytest.mark.skipif(
  not os.path.exists("/proc/self/status"), reason="no peak memory to read"
)
def test_a_move_holds_little_more_than_its_largest_tensor(tmp_path):
  """In and out again."""
  c = configs.Model(
    vocab_size=24_000, max_seq_len=64, num_layers=9, d_model=2048, num_heads=16
  )
  assert make(tmp_path / "large", c) > 2e9
  ours.make(tmp_path / "small")
  for name in ("small", "large"):
    for file, content in ours.tokenizer_files().items():
      (tmp_path / name / file).write_bytes(content)
  given = tmp_path
  for what in ("import", "export"):
    given, before = tmp_path / what, given
    done = subprocess.run(
      [sys.executable, "-c", SCRIPT, what, before / "small", before / "large",
       given],
      capture_output=True,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(what, done.stdout)
    assert 0 < int(done.stdout) < ALLOWED
