"""Adapters of PEFT, merged here and by PEFT."""

import dataclasses
import json
import pickle
import warnings

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory, peft, peft_merge, tensors
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from tests.interop import ours, tiny
from tests.interop.test_gguf import ROWS, read
from tests.interop.test_parity import params_of, their_logits
from tests.interop.test_peft import with_adapters
from tests.models import twin

library = tiny.library("peft")
torch = tiny.library("torch")

ADAPTERS = {
  "attention": dict(target_modules=["q_proj", "v_proj"]),
  "all": dict(target_modules="all-linear", lora_alpha=3),
  "stabilised": dict(target_modules=["k_proj", "down_proj"], use_rslora=True),
  "patterns": dict(
    target_modules=["q_proj", "o_proj", "up_proj"],
    rank_pattern={"layers.1.self_attn.q_proj": 3, "up_proj": 1},
    alpha_pattern={"o_proj": 16, "^model.layers.0.mlp.up_proj": 5},
  ),
  "whole_head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
  "gpt2": dict(target_modules=["c_attn", "c_proj", "c_fc"]),
}


def adapt(theirs, path, **settings):
  """Puts random adapters on a model of `transformers`, and saves them."""
  settings = {"r": 2, "lora_alpha": 7, "task_type": "CAUSAL_LM", **settings}
  torch.manual_seed(1)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = library.get_peft_model(theirs, library.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
      if "lora_" in name or "modules_to_save" in name:
        parameter.data.normal_(0.0, 0.3)
    model.save_pretrained(path)
  return model.eval()


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_those_of_peft(name, tmp_path):
  theirs = tiny.make("gpt2" if name == "gpt2" else "llama")
  source = directory.inspect(tiny.save(theirs, tmp_path / "base"))
  model = LanguageModel(source.config)
  apply = twin.jit(model.apply)
  before = apply({"params": params_of(source, model)}, *ROWS)
  adapted = adapt(theirs, tmp_path / "adapter", **ADAPTERS[name])
  merged = peft_merge.merge(source, tmp_path / "adapter")
  actual = apply({"params": params_of(merged, model)}, *ROWS)
  real = ROWS[1] > 0
  expected = their_logits(adapted, ROWS[0], real.astype(int), ROWS[2])
  np.testing.assert_allclose(actual[real], expected[real], atol=3e-4)
  assert np.abs(actual - before)[real].mean() > 0.03


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma3"])
def test_adapters_that_were_written_here_are_read(name, tmp_path):
  model, params, plain, _ = with_adapters(
    tiny.make(name), tmp_path / "base", LanguageModel
  )
  _, trained = lora.split(model.config, params)
  leaves = directory.flatten_leaves(trained)
  peft.save(tmp_path / "adapter", leaves, model.config, {}, base="x")
  source = directory.inspect(tmp_path / "base")
  merged = peft_merge.merge(source, tmp_path / "adapter")
  actual = twin.jit(plain.apply)({"params": params_of(merged, plain)}, *ROWS)
  expected = twin.jit(model.apply)({"params": params}, *ROWS)
  real = ROWS[1] > 0
  np.testing.assert_allclose(actual[real], expected[real], atol=3e-4)


@pytest.mark.parametrize("scalar", [True, False])
def test_adapters_of_a_reward_model(scalar, tmp_path):
  """Their base is a reward model, or a language model without a score."""
  base = tiny.make("llama", scalar=True)
  model, params, plain, _ = with_adapters(base, tmp_path / "base", ScalarModel)
  params["head"] = {
    "kernel": params["head"]["kernel"] * 2,
    "bias": np.asarray([0.7], np.float32),
  }
  _, trained = lora.split(model.config, params)
  leaves = directory.flatten_leaves(trained)
  peft.save(tmp_path / "adapter", leaves, model.config, {}, base="x")
  source = directory.inspect(tmp_path / "base")
  if not scalar:
    arrays = {n: read(t) for n, t in source.tensors.items()}
    del arrays["score.weight"]
    arrays["lm_head.weight"] = np.ones((40, 16), np.float32)
    written = [
      tensors.PendingTensor(name, array.shape, lambda array=array: array)
      for name, array in arrays.items()
    ]
    tensors.write(tmp_path / "base", written, "float32", 10**9)
    file = tmp_path / "base" / directory.CONFIG
    raw = json.loads(file.read_text())
    del raw["id2label"], raw["label2id"]
    raw["architectures"] = ["LlamaForCausalLM"]
    file.write_text(json.dumps(raw))
    source = directory.inspect(tmp_path / "base")
    assert not source.scalar
  merged = peft_merge.merge(source, tmp_path / "adapter")
  assert merged.scalar and merged.shift == pytest.approx(0.7)
  actual = twin.jit(plain.apply)({"params": params_of(merged, plain)}, *ROWS)
  expected = twin.jit(model.apply)({"params": params}, *ROWS)
  np.testing.assert_allclose(actual, expected, atol=3e-4)


def test_a_region_is_the_sum_in_numpy(tmp_path, monkeypatch):
  ours.make(tmp_path / "base", **twin.LLAMA)
  source = directory.inspect(tmp_path / "base")
  name = "model.layers.0.self_attn.q_proj"
  rng = np.random.default_rng(0)
  down, up = (
    rng.normal(size=shape).astype(np.float32) for shape in ((3, 16), (16, 3))
  )
  write_adapter(tmp_path / "adapter", {name: (down, up)}, r=3, lora_alpha=6)
  base = read(source.tensors[f"{name}.weight"])
  monkeypatch.setattr(tensors, "_CHUNK", 200)
  merged = peft_merge.merge(source, tmp_path / "adapter")
  tensor = merged.tensors[f"{name}.weight"]
  expected = base + 2.0 * (up @ down)
  np.testing.assert_allclose(read(tensor), expected, rtol=1e-5, atol=1e-6)
  region = [slice(1, 2), slice(2, 7), slice(3, 16)]
  np.testing.assert_allclose(
    read(tensor, (2, 8, 16), region),
    expected.reshape(2, 8, 16)[1:2, 2:7, 3:16],
    rtol=1e-5,
    atol=1e-6,
  )
  others = set(merged.tensors) - {f"{name}.weight"}
  assert all(merged.tensors[n] == source.tensors[n] for n in others)


NAME = "model.layers.0.self_attn.q_proj"
FACTORS = np.zeros((2, 16), np.float32), np.zeros((16, 2), np.float32)


def write_adapter(path, factors, more=None, **settings):
  """Writes a PEFT directory without PEFT."""
  path.mkdir()
  arrays = dict(more or {})
  for module, (down, up) in factors.items():
    arrays[f"{module}.lora_A.weight"] = down
    arrays[f"{module}.lora_B.weight"] = up
  pending = [
    tensors.PendingTensor(f"{peft.PREFIX}{n}", a.shape, lambda a=a: a)
    for n, a in arrays.items()
  ]
  tensors.write_file(path / peft.TENSORS, pending, "F32")
  config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings}
  config = {k: v for k, v in config.items() if v != "absent"}
  (path / peft.CONFIG).write_text(json.dumps(config))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  path = tmp_path_factory.mktemp("peft") / "base"
  ours.make(path, **twin.LLAMA)
  return directory.inspect(path)


def refused(base, path):
  with pytest.raises(UserError) as caught:
    peft_merge.merge(base, path)
  assert len(str(caught.value).splitlines()) <= 3
  return caught.value


@pytest.mark.parametrize(
  "settings, field, code",
  [
    ({"use_dora": True}, "use_dora", "unsupported_adapter"),
    ({"bias": "all"}, "bias", "unsupported_adapter"),
    ({"lora_bias": True}, "lora_bias", "unsupported_adapter"),
    ({"peft_type": "IA3"}, "peft_type", "unsupported_adapter"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights",
     "unsupported_adapter"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices",
     "unsupported_adapter"),
    ({"layer_replication": [[0, 1]]}, "layer_replication",
     "unsupported_adapter"),
    ({"of_the_future": 3}, "of_the_future", "unsupported_adapter"),
    ({"r": "absent"}, "r", "missing_config_value"),
    ({"lora_alpha": "many"}, "lora_alpha", "bad_config_value"),
    ({"rank_pattern": [1]}, "rank_pattern", "bad_config_value"),
    ({"task_type": "SEQ_CLS"}, "task_type", "missing_tensor"),
  ],
)  # fmt: skip
def test_settings_that_are_not_supported(base, tmp_path, settings, field, code):
  write_adapter(tmp_path / "a", {NAME: FACTORS}, **settings)
  error = refused(base, tmp_path / "a")
  assert (error.field, error.code) == (field, code)
  assert error.file == str(tmp_path / "a" / peft.CONFIG)


def test_settings_without_effect(base, tmp_path):
  write_adapter(
    tmp_path / "a",
    {NAME: FACTORS},
    use_dora=False,
    of_the_future=None,
    lora_dropout=0.1,
    target_modules=["q_proj"],
    init_lora_weights="gaussian",
  )
  merged = peft_merge.merge(base, tmp_path / "a")
  assert isinstance(merged.tensors[f"{NAME}.weight"], peft_merge.MergedTensor)


@pytest.mark.parametrize(
  "factors, more, code, word",
  [
    ({"model.layers.7.mlp.up_proj": FACTORS}, {}, "unknown_module", "layers.7"),
    ({"model.norm": FACTORS}, {}, "unknown_module", "model.norm"),
    ({NAME: FACTORS[::-1]}, {}, "tensor_shape", NAME),
    ({NAME: (np.zeros((3, 16), "f4"), np.zeros((16, 3), "f4"))}, {},
     "tensor_shape", "lora_A"),
    ({}, {f"{NAME}.lora_A.weight": FACTORS[0]}, "missing_tensor", "lora_A"),
    ({}, {"embed.lora_embedding_A": FACTORS[0]}, "unsupported_adapter",
     "lora_embedding_A"),
    ({}, {f"{NAME}.lora_magnitude_vector.weight": FACTORS[0]},
     "unsupported_adapter", "lora_magnitude_vector"),
    ({}, {"other.weight": FACTORS[0]}, "unknown_module", "other.weight"),
    ({}, {"lm_head.weight": FACTORS[0]}, "tensor_shape", "lm_head"),
    ({}, {}, "missing_tensor", peft.TENSORS),
  ],
)  # fmt: skip
def test_adapters_of_another_model(base, tmp_path, factors, more, code, word):
  write_adapter(tmp_path / "a", factors, more)
  error = refused(base, tmp_path / "a")
  assert error.code == code and word in str(error), error


def test_a_directory_without_adapters(base, tmp_path):
  assert refused(base, tmp_path / "missing").code == "no_adapter_config"
  write_adapter(tmp_path / "a", {NAME: FACTORS})
  (tmp_path / "a" / peft.TENSORS).unlink()
  assert refused(base, tmp_path / "a").code == "no_tensors"
  (tmp_path / "a" / "adapter_model.bin").write_bytes(pickle.dumps({}))
  assert refused(base, tmp_path / "a").code == "pickle"
  (tmp_path / "a" / peft.CONFIG).write_text("[")
  assert refused(base, tmp_path / "a").code == "bad_config"


def test_adapters_of_a_language_model_on_a_reward_model(base, tmp_path):
  write_adapter(tmp_path / "a", {NAME: FACTORS}, task_type="CAUSAL_LM")
  scalar = dataclasses.replace(base, scalar=True)
  assert refused(scalar, tmp_path / "a").code == "other_kind"
