"""What is wrong with a directory is said in one line; nothing is written."""

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
  """A directory of one file, whose header can be changed."""
  path = tmp_path / "model"
  ours.make(path)
  return path


def split(path):
  """Header and data of the directory's file."""
  content = (path / tensors.WHOLE).read_bytes()
  (count,) = struct.unpack("<Q", content[:8])
  return json.loads(content[8 : 8 + count]), content[8 + count :]


def join(path, header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  content = struct.pack("<Q", len(text)) + text + data
  (path / tensors.WHOLE).write_bytes(content)


def refused(path, *words):
  with pytest.raises(UserError) as error:
    directory.look(path)
  text = str(error.value)
  for word in words:
    assert word in text, text
  assert len(text.splitlines()) <= 3


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
  refused(made, name, "is missing", "GPT2LMHeadModel", str(made))


def test_a_tensor_too_many(made):
  header, data = split(made)
  header["h.0.extra"] = {
    "dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4],
  }  # fmt: skip
  join(made, header, data + b"1234")
  refused(made, "h.0.extra", "no place", tensors.WHOLE)


@pytest.mark.parametrize("kind", ["F32", "I32"])
def test_a_misshapen_tensor_and_one_of_whole_numbers(made, kind):
  name = "transformer.wte.weight"

  def change(header):
    header[name]["dtype"] = kind
    header[name]["shape"].reverse()

  changed(made, change)
  refused(made, name, "[16, 13]", "[13, 16]", tensors.WHOLE)


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
    lambda h: h.pop(NAME),  # bytes that nothing describes
  ],
)
def test_a_tampered_header(made, change):
  changed(made, change)
  refused(made, "not a whole safetensors file", tensors.WHOLE)


def test_a_name_that_stands_twice(made):
  header, data = split(made)
  text = json.dumps(header)[:-1] + f', "{NAME}": {json.dumps(header[NAME])}}}'
  join(made, text.encode(), data)
  refused(made, "twice")


@pytest.mark.parametrize("keep", [0, 5, 9, 300, -1])
def test_a_truncated_file(made, keep):
  path = made / tensors.WHOLE
  path.write_bytes(path.read_bytes()[:keep])
  refused(made, "not a whole safetensors file", tensors.WHOLE)


def test_a_file_that_shrinks_after_it_was_looked_at(made):
  source = directory.look(made)
  path = made / tensors.WHOLE
  path.write_bytes(path.read_bytes()[:-4])
  shapes = sharding.unbox(abstract_params(LanguageModel(source.config)))
  with pytest.raises(UserError, match="ends early"):
    directory.load(source, shapes)


@pytest.mark.parametrize(
  "place", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", 3]
)
def test_an_index_that_points_elsewhere(made, place):
  index = {"weight_map": {NAME: place, "b": place}}
  (made / tensors.INDEX).write_text(json.dumps(index))
  refused(made, repr(place), tensors.INDEX) if place != 3 else refused(
    made, tensors.INDEX
  )


def test_an_index_whose_file_lacks_a_tensor(made):
  index = {"weight_map": {"not.there": tensors.WHOLE}}
  (made / tensors.INDEX).write_text(json.dumps(index))
  refused(made, "not.there", tensors.WHOLE, tensors.INDEX)


class _Bomb:
  def __reduce__(self):
    return os.mkdir, ("bomb-went-off",)


def test_a_pickle_is_never_read(made, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (made / tensors.WHOLE).unlink()
  (made / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
  refused(made, "pytorch_model.bin", "pickle", "safetensors")
  # Nor under another name.
  (made / "pytorch_model.bin").rename(made / tensors.WHOLE)
  refused(made, "not a whole safetensors file")
  assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"model_type": "lama"}, ["lama", "did you mean 'llama'?"]),
    ({"model_type": None}, ["not supported", "gpt2"]),
    ({"architectures": ["GPT2ForTokenClassification"]}, ["GPT2LMHeadModel"]),
    ({"activation_function": "mish"}, ["activation_function", "mish", "silu"]),
    ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse"]),
    ({"n_head": 3}, ["num_heads"]),
    ({"n_embd": "wide"}, ["wide"]),
  ],
)
def test_a_configuration_that_is_not_supported(made, changes, words):
  path = made / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  refused(made, "config.json", *words)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_configuration_that_is_no_table(made, text):
  (made / "config.json").write_bytes(text.encode("latin1"))
  refused(made, "config.json")


def test_other_rope_types_are_refused(tmp_path):
  path = tmp_path / "model"
  ours.make(path, **twin.LLAMA)
  file = path / "config.json"
  raw = json.loads(file.read_text())
  raw["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
  file.write_text(json.dumps(raw))
  refused(path, "yarn", "llama3", "config.json")


def test_a_network_that_no_architecture_is(tmp_path):
  with pytest.raises(UserError, match="no architecture"):
    ours.make(tmp_path / "model", **twin.LLAMA, attn_logit_softcap=3.0)
  assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def fail(*unused, **also):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(tensors, "write", fail)
  with pytest.raises(UserError, match="No space left"):
    ours.make(tmp_path / "model")
  assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_written_over(made):
  before = {p.name: p.read_bytes() for p in made.iterdir()}
  with pytest.raises(UserError, match="exists already"):
    ours.make(made)
  assert before == {p.name: p.read_bytes() for p in made.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_types_are_read_as_float32(tmp_path, dtype):
  model = LanguageModel(twin.make_config())
  params = twin.make_params(model)
  directory.save(
    tmp_path / "m",
    directory.flattened(params),
    model.config,
    {},
    ids=ours.IDS,
    dtype=dtype,
  )
  shapes = sharding.unbox(abstract_params(model))
  found = directory.load(directory.look(tmp_path / "m"), shapes)
  kind = np.dtype(jax.numpy.dtype(dtype))

  def same(a, b):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b.astype(kind).astype(np.float32))

  jax.tree.map(same, found, params)


def test_a_decoder_that_was_saved_alone(made):
  """Names without the class's own part, and tables of older versions."""
  header, data = split(made)
  header = {k.removeprefix("transformer."): v for k, v in header.items()}
  header["h.0.attn.bias"] = {
    "dtype": "BOOL", "shape": [4], "data_offsets": [len(data), len(data) + 4],
  }  # fmt: skip
  join(made, header, data + b"1234")
  assert directory.look(made).config.num_layers == 2


def error_of(path):
  with pytest.raises(UserError) as caught:
    directory.look(path)
  return caught.value


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
@pytest.mark.parametrize("name", [tensors.WHOLE, directory.CONFIG])
def test_what_stands_in_place_of_a_file_is_named(made, name, content, code):
  (made / name).write_bytes(content)
  error = error_of(made)
  assert error.code == code and error.file == str(made / name)
  if code == "lfs_pointer":
    assert "git lfs pull" in error.fix


@pytest.mark.parametrize("keep", [300, -1])
def test_a_file_that_is_cut_short_is_named(made, keep):
  path = made / tensors.WHOLE
  whole = path.read_bytes()
  path.write_bytes(whole[:keep])
  error = error_of(made)
  assert (error.code, error.file) == ("truncated_file", str(path))
  assert f"{len(whole):,}" in error.problem or keep == 300


def set_config(path, **changes):
  """Changes config.json; None removes a key."""
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
     "contradicting_config"),
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
def test_the_field_of_a_configuration_is_named(tmp_path, changes, field, code):
  path = tmp_path / "model"
  ours.make(path, **twin.LLAMA)
  set_config(path, **changes)
  error = error_of(path)
  assert (error.field, error.code) == (field, code)
  assert error.file == str(path / directory.CONFIG)


@pytest.mark.parametrize(
  "kinds, code",
  [
    (["full_attention"], "contradicting_config"),
    (["full_attention", "chunked_attention"], "bad_config_value"),
    ("full_attention", "bad_config_value"),
  ],
)
def test_layers_of_a_configuration_are_judged(tmp_path, kinds, code):
  path = tmp_path / "model"
  ours.make(
    path,
    **twin.LLAMA,
    qk_norm=True,
    sliding_window=4,
    sliding_window_pattern="wf",
  )
  set_config(path, layer_types=kinds)
  error = error_of(path)
  assert (error.field, error.code) == ("layer_types", code)
