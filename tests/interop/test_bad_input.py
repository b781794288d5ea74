"""Invalid directories raise an error with a code; nothing is written."""

import json
import os
import pickle
import struct

import jax
import numpy as np
import pytest

from instructgpt_jax import sharding
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory, tensors
from instructgpt_jax.models.heads import LanguageModel, abstract_params
from tests.interop import ours
from tests.models import twin


@pytest.fixture
def made(tmp_path):
  """Returns a directory with one file, whose header can be changed."""
  path = tmp_path / "model"
  ours.make(path)
  return path


def split(path):
  """Splits the directory's file into header and data."""
  content = (path / tensors.SINGLE_FILE).read_bytes()
  (count,) = struct.unpack("<Q", content[:8])
  return json.loads(content[8 : 8 + count]), content[8 + count :]


def join(path, header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  content = struct.pack("<Q", len(text)) + text + data
  (path / tensors.SINGLE_FILE).write_bytes(content)


def inspect_error(path):
  with pytest.raises(UserError) as caught:
    directory.inspect(path)
  return caught.value


def assert_refused(path, code, *words):
  """Asserts the error's code, and names of files or tensors in its text."""
  error = inspect_error(path)
  assert error.code == code, error
  for word in words:
    assert word in str(error), error
  assert len(str(error).splitlines()) <= 3


def changed(path, change):
  header, data = split(path)
  change(header)
  join(path, header, data)


def test_a_missing_tensor(made):
  name = "transformer.h.1.mlp.c_fc.bias"
  header, data = split(made)
  begin, end = header.pop(name)["data_offsets"]
  for entry in header.values():
    at = entry.get("data_offsets", [0, 0])
    if at[0] >= end:
      entry["data_offsets"] = [x - (end - begin) for x in at]
  join(made, header, data[:begin] + data[end:])
  assert_refused(made, "missing_tensor", name, "GPT2LMHeadModel", str(made))


def test_an_unexpected_tensor_is_refused(made):
  header, data = split(made)
  header["h.0.extra"] = {
    "dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4],
  }  # fmt: skip
  join(made, header, data + b"1234")
  assert_refused(made, "unexpected_tensor", "h.0.extra", tensors.SINGLE_FILE)


@pytest.mark.parametrize("dtype", ["F32", "I32"])
def test_a_wrong_shape_and_an_integer_tensor_are_refused(made, dtype):
  name = "transformer.wte.weight"

  def change(header):
    header[name]["dtype"] = dtype
    header[name]["shape"].reverse()

  changed(made, change)
  assert_refused(made, "tensor_shape", name, "[16, 13]", "[13, 16]")


NAME = "transformer.ln_f.bias"


@pytest.mark.parametrize(
  "change",
  [
    lambda h: h[NAME]["data_offsets"].reverse(),
    lambda h: h[NAME].update(data_offsets=[0, 64]),  # another's bytes
    lambda h: h[NAME].update(data_offsets=[10**9, 10**9 + 64]),
    lambda h: h[NAME].update(data_offsets=[-64, 0]),
    lambda h: h[NAME].update(shape=[17]),
    lambda h: h[NAME].update(shape=["16"]),
    lambda h: h[NAME].update(dtype="X32"),
    lambda h: h.update({NAME: 3}),
    lambda h: h.pop(NAME),  # bytes that no entry describes
  ],
)
def test_a_tampered_header_is_refused(made, change):
  changed(made, change)
  error = inspect_error(made)
  assert error.code in ("bad_safetensors", "truncated_file")
  assert error.file == str(made / tensors.SINGLE_FILE)


def test_a_duplicate_name_in_the_header_is_refused(made):
  header, data = split(made)
  text = json.dumps(header)[:-1] + f', "{NAME}": {json.dumps(header[NAME])}}}'
  join(made, text.encode(), data)
  assert_refused(made, "bad_safetensors", "twice")


@pytest.mark.parametrize(
  "size, code",
  [
    (0, "empty_file"),
    (5, "bad_safetensors"),
    (9, "truncated_file"),
    (300, "truncated_file"),
    (-1, "truncated_file"),
  ],
)
def test_a_truncated_file_is_refused(made, size, code):
  path = made / tensors.SINGLE_FILE
  path.write_bytes(path.read_bytes()[:size])
  assert_refused(made, code, tensors.SINGLE_FILE)


def test_a_file_that_shrinks_after_inspection(made):
  source = directory.inspect(made)
  path = made / tensors.SINGLE_FILE
  path.write_bytes(path.read_bytes()[:-4])
  shapes = sharding.unbox(abstract_params(LanguageModel(source.config)))
  with pytest.raises(UserError) as caught:
    directory.load(source, shapes)
  assert caught.value.code == "truncated_file"


@pytest.mark.parametrize(
  "file", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", 3]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(made, file):
  index = {"weight_map": {NAME: file, "b": file}}
  (made / tensors.INDEX).write_text(json.dumps(index))
  assert_refused(made, "bad_index", repr(file), tensors.INDEX)


def test_an_index_whose_file_lacks_a_tensor(made):
  index = {"weight_map": {"not.there": tensors.SINGLE_FILE}}
  (made / tensors.INDEX).write_text(json.dumps(index))
  assert_refused(
    made, "bad_index", "not.there", tensors.SINGLE_FILE, tensors.INDEX
  )


class _Bomb:
  def __reduce__(self):
    return os.mkdir, ("bomb-went-off",)


def test_a_pickle_is_never_read(made, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (made / tensors.SINGLE_FILE).unlink()
  (made / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
  assert_refused(made, "pickle", "pytorch_model.bin", "safetensors")
  # A pickle with the name of a safetensors file is not read either.
  (made / "pytorch_model.bin").rename(made / tensors.SINGLE_FILE)
  assert inspect_error(made).file == str(made / tensors.SINGLE_FILE)
  assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize(
  "changes, code, words",
  [
    ({"model_type": "lama"}, "unknown_architecture", ["lama", "'llama'"]),
    ({"model_type": None}, "unknown_architecture", ["gpt2"]),
    (
      {"architectures": ["GPT2ForTokenClassification"]},
      "bad_config_value",
      ["GPT2LMHeadModel"],
    ),
    (
      {"activation_function": "mish"},
      "bad_config_value",
      ["activation_function", "mish", "silu"],
    ),
    (
      {"scale_attn_by_inverse_layer_idx": True},
      "bad_config_value",
      ["scale_attn_by_inverse"],
    ),
    ({"n_embd": "wide"}, "bad_config_value", ["n_embd", "wide"]),
  ],
)
def test_an_unsupported_config_is_refused(made, changes, code, words):
  set_config(made, **changes)
  assert_refused(made, code, "config.json", *words)


def test_a_config_that_is_no_model_is_refused(made):
  set_config(made, n_head=3)
  error = inspect_error(made)
  assert (error.field, error.code) == ("n_head", "not_a_divisor")


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_config_that_is_not_an_object_is_refused(made, text):
  (made / "config.json").write_bytes(text.encode("latin1"))
  assert inspect_error(made).file == str(made / "config.json")


def test_other_rope_types_are_refused(tmp_path):
  path = tmp_path / "model"
  ours.make(path, **twin.LLAMA)
  file = path / "config.json"
  raw = json.loads(file.read_text())
  raw["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
  file.write_text(json.dumps(raw))
  assert_refused(path, "bad_config_value", "yarn", "llama3", "config.json")


def test_a_model_that_no_architecture_represents_is_refused(tmp_path):
  with pytest.raises(UserError) as caught:
    ours.make(tmp_path / "model", **twin.LLAMA, attn_logit_softcap=3.0)
  assert caught.value.code == "no_architecture"
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
  def fail(*unused, **also):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(tensors, "write", fail)
  with pytest.raises(UserError, match="No space left"):
    ours.make(tmp_path / "model")
  assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_not_overwritten(made):
  before = {p.name: p.read_bytes() for p in made.iterdir()}
  with pytest.raises(UserError) as caught:
    ours.make(made)
  assert caught.value.code == "output_exists"
  assert before == {p.name: p.read_bytes() for p in made.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_dtypes_are_read_as_float32(tmp_path, dtype):
  model = LanguageModel(twin.make_config())
  params = twin.make_params(model)
  directory.save(
    tmp_path / "m",
    directory.flatten_leaves(params),
    model.config,
    {},
    ids=ours.IDS,
    dtype=dtype,
  )
  shapes = sharding.unbox(abstract_params(model))
  loaded = directory.load(directory.inspect(tmp_path / "m"), shapes)
  numpy_dtype = np.dtype(jax.numpy.dtype(dtype))

  def assert_rounded(a, b):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b.astype(numpy_dtype).astype(np.float32))

  jax.tree.map(assert_rounded, loaded, params)


def test_a_decoder_saved_without_its_head_is_read(made):
  """Names lack the class's prefix; derived tensors are ignored."""
  header, data = split(made)
  header = {k.removeprefix("transformer."): v for k, v in header.items()}
  header["h.0.attn.bias"] = {
    "dtype": "BOOL", "shape": [4], "data_offsets": [len(data), len(data) + 4],
  }  # fmt: skip
  join(made, header, data + b"1234")
  assert directory.inspect(made).config.num_layers == 2


POINTER = (
  b"version https://git-lfs.github.com/spec/v1\n"
  b"oid sha256:" + b"0" * 64 + b"\nsize 269060552\n"
)


@pytest.mark.parametrize(
  "content, code",
  [
    (POINTER, "lfs_pointer"),
    (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "html_page"),
    (b"\n <html><head></head></html>", "html_page"),
    (b"Entry not found", "error_page"),
    (b"", "empty_file"),
    (b"GGUF\x03\x00\x00\x00" + b"\x00" * 40, "binary_file"),
    (b"\x1f\x8b\x08" + b"\x00" * 40, "compressed_file"),
  ],
)
@pytest.mark.parametrize("name", [tensors.SINGLE_FILE, directory.CONFIG])
def test_another_file_type_is_recognised(made, name, content, code):
  (made / name).write_bytes(content)
  error = inspect_error(made)
  assert error.code == code and error.file == str(made / name)
  if code == "lfs_pointer":
    assert "git lfs pull" in error.fix


@pytest.mark.parametrize("keep", [300, -1])
def test_the_error_of_a_truncated_file_names_its_full_size(made, keep):
  path = made / tensors.SINGLE_FILE
  whole = path.read_bytes()
  path.write_bytes(whole[:keep])
  error = inspect_error(made)
  assert (error.code, error.file) == ("truncated_file", str(path))
  assert f"{len(whole):,}" in error.problem or keep == 300


def set_config(path, **changes):
  """Changes entries of config.json; "absent" removes a key."""
  file = path / directory.CONFIG
  raw = {**json.loads(file.read_text()), **changes}
  raw = {key: value for key, value in raw.items() if value != "absent"}
  file.write_text(json.dumps(raw))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}


@pytest.mark.parametrize(
  "changes, field, code",
  [
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling",
     "missing_config_value"),
    ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_scaling",
     "missing_config_value"),
    ({"rope_scaling": LLAMA3}, "rope_scaling", "missing_config_value"),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters",
     "missing_config_value"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "two"}},
     "rope_scaling", "bad_config_value"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "rope_scaling",
     "bad_config_value"),
    ({"rope_scaling": [2.0]}, "rope_scaling", "bad_config_value"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0},
      "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
     "rope_scaling", "contradicting_config"),
    ({"hidden_size": "absent"}, "hidden_size", "missing_config_value"),
    ({"max_position_embeddings": "absent"}, "max_position_embeddings",
     "missing_config_value"),
    ({"hidden_size": "wide"}, "hidden_size", "bad_config_value"),
    ({"num_hidden_layers": 1.5}, "num_hidden_layers", "bad_config_value"),
    ({"num_key_value_heads": 3}, "num_key_value_heads",
     "not_a_divisor"),
    ({"architectures": ["MistralForCausalLM"]}, "architectures",
     "contradicting_config"),
    ({"architectures": ["LlamaForSequenceClassification"],
      "id2label": {"0": "a", "1": "b"}}, "id2label", "bad_config_value"),
    ({"quantization_config": {"quant_method": "gptq"}},
     "quantization_config", "quantised_model"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings",
     "contradicting_config"),
  ],
)  # fmt: skip
def test_the_error_names_the_field_of_config_json(
  tmp_path, changes, field, code
):
  path = tmp_path / "model"
  ours.make(path, **twin.LLAMA)
  set_config(path, **changes)
  error = inspect_error(path)
  assert (error.field, error.code) == (field, code)
  assert error.file == str(path / directory.CONFIG)


@pytest.mark.parametrize(
  "layer_types, code",
  [
    (["full_attention"], "contradicting_config"),
    (["full_attention", "chunked_attention"], "bad_config_value"),
    ("full_attention", "bad_config_value"),
  ],
)
def test_bad_layer_types_are_refused(tmp_path, layer_types, code):
  path = tmp_path / "model"
  ours.make(
    path,
    **twin.LLAMA,
    qk_norm=True,
    sliding_window=4,
    sliding_window_pattern="wf",
  )
  set_config(path, layer_types=layer_types)
  error = inspect_error(path)
  assert (error.field, error.code) == ("layer_types", code)
