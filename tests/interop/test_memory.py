"""Import and export of a 2 GB checkpoint need little memory."""

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
  # getrusage would include the parent's memory from before the fork.
  with open("/proc/self/status") as file:
    (line,) = [line for line in file if line.startswith("VmHWM:")]
  return int(line.split()[1]) * 1024

command, small, large, to = sys.argv[1:]
convert = {"import": import_model, "export": export_model}[command]
convert(small, to + "/small")
before = peak()
convert(large, to + "/large")
print(peak() - before)
"""


def make(path, c):
  """Writes a directory whose tensors are zeros in a sparse file."""
  family = families.FAMILIES["gpt2"]
  axis_sizes = mapping.axis_sizes(c, c.vocab_size)
  header, at = {}, 0
  for weight, _, name in directory.expand_layers(family, c, False):
    shape = weight.hf_shape(axis_sizes)
    end = at + 4 * math.prod(shape)
    header[name] = {
      "dtype": "F32",
      "shape": shape,
      "data_offsets": [at, end],
    }
    at = end
  path.mkdir()
  text = json.dumps(header).encode()
  with open(path / tensors.SINGLE_FILE, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + at)
  config_json = family.to_hf(families.canonicalize(c))
  (path / directory.CONFIG).write_text(json.dumps(config_json))
  return at


@pytest.mark.skipif(
  not os.path.exists("/proc/self/status"), reason="no peak memory to read"
)
def test_peak_memory_is_little_more_than_the_largest_tensor(tmp_path):
  c = configs.Model(
    vocab_size=24_000, max_seq_len=64, num_layers=9, d_model=2048, num_heads=16
  )
  assert make(tmp_path / "large", c) > 2e9
  ours.make(tmp_path / "small")
  for name in ("small", "large"):
    for file, content in ours.tokenizer_files().items():
      (tmp_path / name / file).write_bytes(content)
  source = tmp_path
  for command in ("import", "export"):
    target = tmp_path / command
    process = subprocess.run(
      [sys.executable, "-c", SCRIPT, command, source / "small",
       source / "large", target],
      capture_output=True,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert 0 < int(process.stdout) < ALLOWED
    source = target
