"""GGUF files, compared with `transformers` and with the package `gguf`."""

import os
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from instructgpt_jax import gguf_header
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory, gguf_checkpoint, gguf_tensors
from instructgpt_jax.models.heads import LanguageModel
from tests.interop import gguf_files, tiny
from tests.interop.test_parity import (
  POSITIONS,
  SEGMENTS,
  TOKENS,
  params_of,
  their_logits,
)
from tests.models import twin

gguf = tiny.library("gguf")
torch = tiny.library("torch")
ROWS = TOKENS[:3], SEGMENTS[:3], POSITIONS[:3]


def read(tensor, shape=None, region=None):
  """Returns the values of a tensor, or of a region of it."""
  shape = shape or tensor.shape
  region = region or [slice(0, n) for n in shape]
  values = np.empty([s.stop - s.start for s in region], np.float32)
  tensor.read_region(shape, region, values)
  return values


@pytest.mark.parametrize("name", gguf_files.MODELS)
def test_logits_of_each_architecture(name, tmp_path):
  theirs = gguf_files.write_model(tmp_path / "m.gguf", name)
  source = gguf_checkpoint.inspect(tmp_path / "m.gguf")
  same = directory.inspect(tiny.save(theirs, tmp_path / "theirs"))
  assert source.config == same.config
  assert source.notes == ()
  assert set(source.tensors) == set(same.tensors)
  for tensor_name, tensor in same.tensors.items():
    np.testing.assert_array_equal(
      read(source.tensors[tensor_name]), read(tensor), err_msg=tensor_name
    )
  model = LanguageModel(source.config)
  logits = twin.jit(model.apply)({"params": params_of(source, model)}, *ROWS)
  real = ROWS[1] > 0
  expected = their_logits(theirs, ROWS[0], real.astype(int), ROWS[2])
  np.testing.assert_allclose(logits[real], expected[real], atol=3e-4)
  assert np.std(expected) > 0.3


@pytest.mark.parametrize("kind", gguf_tensors.DTYPES)
def test_values_of_each_type(kind, tmp_path):
  rng = np.random.default_rng(1)
  matrix = rng.normal(size=(6, 512)).astype(np.float32)
  vector = matrix[0]
  type_id = gguf.GGMLQuantizationType[kind]
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
  for name, values in (("matrix", matrix), ("vector", vector)):
    packed = gguf_files.pack(values, kind)
    writer.add_tensor(name, packed, raw_dtype=type_id)
  gguf_files.finish(writer)
  header = gguf_header.read_header(tmp_path / "m.gguf")
  ours = gguf_tensors.list_tensors(header)
  theirs = gguf.GGUFReader(tmp_path / "m.gguf")
  for tensor in theirs.tensors:
    expected = gguf.dequantize(tensor.data, tensor.tensor_type)
    shape = tuple(reversed(tensor.shape.tolist()))
    np.testing.assert_array_equal(
      read(ours[tensor.name]), expected.reshape(shape)
    )
    if kind not in ("F32", "F16", "BF16", "Q5_0", "Q5_1"):
      # A second implementation of the types, of `transformers`.
      other = tiny.library("transformers.integrations.gguf.dequant")
      content = torch.tensor(np.array(tensor.data)).reshape(-1)
      np.testing.assert_allclose(
        read(ours[tensor.name]).reshape(-1),
        other.dequantize(content, int(tensor.tensor_type)).numpy(),
        rtol=1e-6,
        atol=1e-6,
      )
  whole = read(ours["matrix"])
  region = [slice(1, 3), slice(0, 2), slice(100, 200)]
  np.testing.assert_array_equal(
    read(ours["matrix"], (3, 2, 512), region),
    whole.reshape(3, 2, 512)[1:3, 0:2, 100:200],
  )
  np.testing.assert_array_equal(
    read(ours["vector"], (4, 128), [slice(1, 3), slice(3, 9)]),
    read(ours["vector"]).reshape(4, 128)[1:3, 3:9],
  )


def test_large_tensors_are_read_in_parts(tmp_path, monkeypatch):
  theirs = gguf_files.write_model(tmp_path / "m.gguf", "llama")
  source = gguf_checkpoint.inspect(tmp_path / "m.gguf")
  tensors = {
    name: tensor
    for name, tensor in source.tensors.items()
    if "q_proj" in name or "up_proj" in name
  }
  expected = {name: read(tensor) for name, tensor in tensors.items()}
  monkeypatch.setattr("instructgpt_jax.interop.tensors._CHUNK", 30_000)
  for name, tensor in tensors.items():
    shape = tensor.shape
    if "q_proj" in name:  # rows that are heads
      shape = (theirs.config.num_attention_heads, -1, shape[1])
      shape = expected[name].reshape(shape).shape
    np.testing.assert_array_equal(
      read(tensor, shape), expected[name].reshape(shape)
    )


def test_memory_does_not_grow_with_a_tensor(tmp_path):
  """One column of 400 MB is read through all rows."""
  shape = (200_000, 512)
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
  size = shape[0] * shape[1] // 32 * 34
  writer.add_tensor_info(
    "t", shape, np.dtype("f2"), size, gguf.GGMLQuantizationType.Q8_0
  )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_ti_data_to_file()
  writer.close()
  os.truncate(tmp_path / "m.gguf", 4096 + size)  # zeros
  header = gguf_header.read_header(tmp_path / "m.gguf")
  (tensor,) = gguf_tensors.list_tensors(header).values()
  read(tensor, region=[slice(0, 1), slice(0, 1)])
  tracemalloc.start()
  read(tensor, region=[slice(0, shape[0]), slice(0, 1)])
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 150e6


def test_metadata_are_those_of_the_package(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
  writer.add_uint8("a.u8", 200)
  writer.add_int8("a.i8", -3)
  writer.add_uint16("a.u16", 60_000)
  writer.add_int16("a.i16", -300)
  writer.add_int32("a.i32", -70_000)
  writer.add_float32("a.f32", 0.1)
  writer.add_uint64("a.u64", 2**40)
  writer.add_int64("a.i64", -(2**40))
  writer.add_float64("a.f64", 0.1)
  writer.add_bool("a.bool", True)
  writer.add_string("a.text", "λ ▁ \n")
  writer.add_array("a.texts", ["", "ä", "b c"])
  writer.add_array("a.ints", [1, -2, 3])
  writer.add_array("a.floats", [0.5, 1.5])
  writer.add_array("a.bools", [True, False])
  writer.add_tensor("t", np.ones((2, 3, 4), np.float32))
  gguf_files.finish(writer)
  header = gguf_header.read_header(tmp_path / "m.gguf")
  theirs = gguf.GGUFReader(tmp_path / "m.gguf")
  for key, field in theirs.fields.items():
    if not key.startswith("GGUF."):
      actual = header.metadata[key]
      actual = actual.tolist() if isinstance(actual, np.ndarray) else actual
      assert actual == field.contents(), key
  assert len(header.metadata) == len(theirs.fields) - 3
  (entry,) = header.tensors.values()
  assert entry.shape == (2, 3, 4)
  assert entry.begin == theirs.tensors[0].data_offset


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns the path of a file that is read without an error."""
  path = tmp_path_factory.mktemp("gguf") / "m.gguf"
  gguf_files.write_model(path, "llama")
  return path


def refused(path):
  with pytest.raises(UserError) as caught:
    gguf_checkpoint.inspect(path)
  assert len(str(caught.value).splitlines()) <= 3
  return caught.value


def changed(path, tmp_path, keys=(), tensors=(), architecture="llama"):
  """Writes a file again with other metadata; None removes a key."""
  reader = gguf.GGUFReader(path)
  writer = gguf.GGUFWriter(tmp_path / "changed.gguf", architecture)
  values = {
    key: field.contents()
    for key, field in reader.fields.items()
    if not key.startswith(("GGUF.", "general.architecture"))
  }
  for key, value in {**values, **dict(keys)}.items():
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    elif value is not None:
      writer.add_array(key, value)
  contents = {t.name: (t.data, t.tensor_type) for t in reader.tensors}
  for name, content in {**contents, **dict(tensors)}.items():
    if content is not None:
      writer.add_tensor(name, np.array(content[0]), raw_dtype=content[1])
  gguf_files.finish(writer)
  return tmp_path / "changed.gguf"


@pytest.mark.parametrize(
  "keys, field, code",
  [
    ({"llama.block_count": None}, "llama.block_count", "missing_config_value"),
    ({"llama.block_count": "two"}, "llama.block_count", "bad_config_value"),
    ({"llama.attention.head_count": 0}, "llama.attention.head_count",
     "bad_config_value"),
    ({"llama.attention.head_count": [4, 8]}, "llama.attention.head_count",
     "bad_config_value"),
    ({"llama.attention.head_count_kv": 3}, "llama.attention.head_count_kv",
     "not_a_divisor"),
    ({"llama.attention.value_length": 16}, "llama.attention.value_length",
     "bad_config_value"),
    ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count",
     "bad_config_value"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
     "llama.rope.scaling.type", "bad_config_value"),
    ({"llama.expert_count": 8}, "llama.expert_count", "bad_config_value"),
    ({"llama.attention.scale": 0.5}, "llama.attention.scale",
     "bad_config_value"),
    ({"general.type": "adapter"}, "general.type", "not_a_model"),
    ({"split.count": 2}, None, "split_gguf"),
  ],
)  # fmt: skip
def test_settings_that_are_not_supported(made, tmp_path, keys, field, code):
  path = changed(made, tmp_path, keys)
  error = refused(path)
  assert (error.code, error.field, error.file) == (code, field, str(path))


@pytest.mark.parametrize(
  "keys",
  [
    {"llama.expert_count": 0},
    {"llama.attention.head_count": [8, 8]},
    {"llama.attention.scale": 32**-0.5},
    {"llama.rope.scaling.type": "none", "llama.vocab_size": 40},
    {"split.count": 1},
  ],
)
def test_settings_that_change_nothing(made, tmp_path, keys):
  expected = gguf_checkpoint.inspect(made)
  actual = gguf_checkpoint.inspect(changed(made, tmp_path, keys))
  assert actual.config == expected.config and actual.notes == ()


def test_unknown_settings_are_named(made, tmp_path):
  source = gguf_checkpoint.inspect(changed(made, tmp_path, {"llama.new": 3}))
  assert len(source.notes) == 1 and "llama.new=3" in source.notes[0]


@pytest.mark.parametrize("key", ["factor", "scale_linear"])
def test_linear_rope_scaling(made, tmp_path, key):
  keys: dict = {"llama.rope.scale_linear": 4.0}
  if key == "factor":
    keys = {
      "llama.rope.scaling.type": "linear",
      "llama.rope.scaling.factor": 4.0,
    }
  c = gguf_checkpoint.inspect(changed(made, tmp_path, keys)).config
  assert (c.rope_scaling, c.rope_factor) == ("linear", 4.0)


def test_an_unknown_architecture(made, tmp_path):
  error = refused(changed(made, tmp_path, architecture="mamba"))
  assert (error.code, error.field) == (
    "unknown_architecture",
    "general.architecture",
  )
  assert "llama" in error.fix


@pytest.mark.parametrize("kind", ["IQ4_NL", "I32"])
def test_an_unsupported_type(made, tmp_path, kind):
  type_id = gguf.GGMLQuantizationType[kind]
  data = np.zeros((256, 144), np.uint8)
  if kind == "I32":
    data = np.zeros((256, 256), np.int32)
  path = changed(
    made, tmp_path, tensors={"blk.1.ffn_up.weight": (data, type_id)}
  )
  error = refused(path)
  assert error.code == "unsupported_quantisation"
  assert kind in error.problem and "blk.1.ffn_up.weight" in error.problem


def test_a_type_that_is_not_known(made, tmp_path):
  content = bytearray(made.read_bytes())
  name = b"blk.1.ffn_up.weight"
  at = content.index(name) + len(name) + 4 + 2 * 8
  content[at : at + 4] = struct.pack("<I", 99)
  (tmp_path / "m.gguf").write_bytes(content)
  error = refused(tmp_path / "m.gguf")
  assert error.code == "unsupported_quantisation" and "99" in error.problem


@pytest.mark.parametrize(
  "tensors, code",
  [
    ({"blk.0.ffn_up.weight": None}, "missing_tensor"),
    ({"token_embd.weight": None}, "missing_tensor"),
    ({"blk.0.extra.weight": np.zeros(3, "f4")}, "unexpected_tensor"),
    ({"blk.0.ffn_up.weight": np.zeros((2, 256), "f4")}, "tensor_shape"),
    ({"rope_freqs.weight": np.full(16, 2.0, "f4")}, "bad_config_value"),
  ],
)
def test_tensors_of_another_model(made, tmp_path, tensors, code):
  values = {
    name: None if value is None else (value, gguf.GGMLQuantizationType.F32)
    for name, value in tensors.items()
  }
  path = changed(made, tmp_path, tensors=values)
  error = refused(path)
  assert (error.code, error.file) == (code, str(path))


@pytest.mark.parametrize("size", [4, 7, 20, 30, 200, 800, 3000, -300, -40])
def test_a_truncated_file(made, tmp_path, size):
  path = tmp_path / "m.gguf"
  path.write_bytes(made.read_bytes()[:size])
  error = refused(path)
  assert (error.code, error.file) == ("truncated_file", str(path))


def test_a_file_that_shrinks_after_inspection(made, tmp_path):
  path = tmp_path / "m.gguf"
  content = made.read_bytes()
  path.write_bytes(content)
  source = gguf_checkpoint.inspect(path)
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError) as caught:
    params_of(source, LanguageModel(source.config))
  assert caught.value.code == "truncated_file"


def test_damaged_headers_are_refused_at_once(made, tmp_path):
  """Neither a wrong count nor a wrong length costs time or memory."""
  whole = made.read_bytes()
  path = tmp_path / "m.gguf"
  rng = np.random.default_rng(0)
  end = whole.index(b"output_norm.weight") + 200
  codes = set()
  for _ in range(200):
    content = bytearray(whole)
    for at in rng.integers(4, end, 2):
      content[at] = rng.integers(0, 256)
    path.write_bytes(content)
    try:
      gguf_checkpoint.inspect(path)
    except UserError as error:
      assert error.code and len(str(error).splitlines()) <= 3
      codes.add(error.code)
  assert {"truncated_file", "bad_gguf"} <= codes


@pytest.mark.parametrize(
  "content, code",
  [
    (b"", "empty_file"),
    (b"some text that is no model", "not_gguf"),
    (b"<!DOCTYPE html><html></html>", "html_page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "lfs_pointer"),
    (b"PK\x03\x04" + bytes(40), "archive"),
    (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "gguf_version"),
    (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "gguf_version"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "gguf_version"),
  ],
)  # fmt: skip
def test_a_file_of_another_type(tmp_path, content, code):
  (tmp_path / "m.gguf").write_bytes(content)
  assert refused(tmp_path / "m.gguf").code == code


def test_one_of_several_files(made, tmp_path):
  path = tmp_path / "m-00001-of-00003.gguf"
  path.write_bytes(made.read_bytes())
  error = refused(path)
  assert error.code == "split_gguf" and "3 files" in error.problem


def test_without_the_package(made, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  error = refused(made)
  assert error.code == "missing_package" and "pip install" in error.fix


def test_a_path_that_cannot_be_read(tmp_path):
  assert not gguf_header.is_gguf(tmp_path / "missing.gguf")
  assert not gguf_header.is_gguf(tmp_path)
  assert refused(tmp_path / "missing.gguf").code == "unreadable"
  (tmp_path / "model").write_bytes(b"GGUF" + bytes(20))
  assert gguf_header.is_gguf(tmp_path / "model")
