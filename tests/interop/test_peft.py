"""Adapters as PEFT loads them."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest

from instructgpt_jax.interop import directory, peft
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from tests.interop import tiny
from tests.interop.test_parity import (
  POSITIONS,
  SEGMENTS,
  TOKENS,
  params_of,
  their_logits,
)
from tests.models import twin

library = tiny.library("peft")


def put_on(theirs, path):
  """Returns their model with the adapters of a directory."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = library.PeftModel.from_pretrained(theirs, str(path)).eval()
  # PEFT warns of unused tensors and of missing ones.
  assert not [w for w in caught if "adapter keys" in str(w.message)]
  return model


def with_adapters(theirs, path, network, head_padding=0, **changes):
  """Returns our network with adapters, its parameters, and those without."""
  source = directory.inspect(tiny.save(theirs, path))
  c = dataclasses.replace(source.config, lora_rank=3, lora_alpha=5.0, **changes)
  wide = dataclasses.replace(c, head_padding=head_padding)
  model = network(wide)
  plain = network(dataclasses.replace(wide, lora_rank=None))
  base_params = params_of(source, plain)
  drawn = twin.fill_up(twin.make_params(network(c)), model)
  fresh = lora.tree_difference(drawn, base_params)
  params = lora.merge_trees(base_params, lora.tree_select(fresh, drawn))
  return model, params, plain, base_params


@pytest.mark.parametrize("layers", ["all", "attention"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma3"])
def test_peft_puts_them_on_their_model(name, layers, tmp_path):
  theirs = tiny.make(name)
  model, params, plain, base_params = with_adapters(
    theirs,
    tmp_path / "theirs",
    LanguageModel,
    lora_layers=layers,
    scan_layers=name == "llama",
    head_padding=int(name in ("llama", "gpt2")),
  )
  rows = TOKENS[:3], SEGMENTS[:3], POSITIONS[:3]
  actual = twin.jit(model.apply)({"params": params}, *rows)
  before = twin.jit(plain.apply)({"params": base_params}, *rows)
  _, trained = lora.split(model.config, params)
  peft.save(
    tmp_path / "adapters",
    directory.flatten_leaves(trained),
    model.config,
    {},
    base=str(tmp_path / "theirs"),
  )
  theirs = put_on(theirs, tmp_path / "adapters")
  expected = their_logits(
    theirs, TOKENS[:3], (SEGMENTS[:3] > 0).astype(int), POSITIONS[:3]
  )
  real = SEGMENTS[:3] > 0
  np.testing.assert_allclose(actual[real], expected[real], atol=3e-4)
  assert np.abs(actual - before)[real].mean() > 0.1


def test_a_reward_models_head_goes_with_them(tmp_path):
  theirs = tiny.make("llama", scalar=True)
  model, params, _, _ = with_adapters(theirs, tmp_path / "theirs", ScalarModel)
  params["head"] = {
    "kernel": params["head"]["kernel"] * 2,
    "bias": np.asarray([0.7], np.float32),
  }
  _, trained = lora.split(model.config, params)
  peft.save(
    tmp_path / "adapters",
    directory.flatten_leaves(trained),
    model.config,
    {},
    base="x",
  )
  adapter_config = json.loads((tmp_path / "adapters" / peft.CONFIG).read_text())
  tokens = np.where(SEGMENTS[:3] > 0, TOKENS[:3], 0)
  rows = tokens, SEGMENTS[:3], POSITIONS[:3]
  actual = twin.jit(model.apply)({"params": params}, *rows)
  actual = np.asarray(actual)[range(3), [11, 11, 6]]
  expected = their_logits(put_on(theirs, tmp_path / "adapters"), *rows)[:, 0]
  shift = adapter_config["instructgpt_jax_score_shift"]
  assert shift == pytest.approx(0.7)
  np.testing.assert_allclose(actual, expected + shift, atol=3e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "qwen3"])
def test_heads_that_are_zero_change_nothing(name, tmp_path):
  """Heads that are zero are not exported either."""
  theirs = tiny.make(name)
  source = directory.inspect(tiny.save(theirs, tmp_path / "theirs"))
  plain, wide = (
    LanguageModel(dataclasses.replace(source.config, head_padding=n))
    for n in (0, 2)
  )
  params = params_of(source, wide)
  shape = params["transformer"]["blocks_0"]["project"]["kernel"].shape
  assert shape[0] > source.config.num_heads
  a, b = (
    twin.jit(m.apply)({"params": p}, TOKENS, SEGMENTS, POSITIONS)
    for m, p in ((plain, params_of(source, plain)), (wide, params))
  )
  np.testing.assert_allclose(a, b, atol=1e-5)
  directory.save(
    tmp_path / "ours",
    directory.flatten_leaves(params),
    wide.config,
    {},
    ids=tiny.IDS,
  )
  again = directory.inspect(tmp_path / "ours")
  jax.tree.map(
    np.testing.assert_array_equal,
    params_of(again, plain),
    params_of(source, plain),
  )
