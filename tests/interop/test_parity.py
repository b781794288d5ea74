"""Round trips of every architecture, compared with `transformers`."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructgpt_jax import interop, sharding
from instructgpt_jax.configs import presets
from instructgpt_jax.interop import directory, families
from instructgpt_jax.models.heads import (
  LanguageModel,
  ScalarModel,
  abstract_params,
)
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.types import PromptBatch
from tests.interop import tiny
from tests.models import twin

torch = tiny.library("torch")

LENGTH = 12
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(3, 40, (4, LENGTH))
# Whole; padded on the left, as prompts are; on the right; two packed documents.
SEGMENTS = np.array(
  [[1] * 12, [0] * 3 + [1] * 9, [1] * 7 + [0] * 5, [1] * 5 + [2] * 7]
)
POSITIONS = np.array(
  [
    range(12),
    [0] * 3 + [*range(9)],
    [*range(7)] + [0] * 5,
    [*range(5)] + [*range(7)],
  ]
)


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def both(request, tmp_path_factory):
  """Returns their model, our network and its parameters."""
  theirs = tiny.make(request.param)
  path = tmp_path_factory.mktemp("hub") / "theirs"
  source = directory.inspect(tiny.save(theirs, path))
  model = LanguageModel(source.config)
  return theirs, model, params_of(source, model)


def params_of(source, model):
  return directory.load(source, sharding.unbox(abstract_params(model)))


def their_logits(model, tokens, mask, positions):
  inputs = dict(
    input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)
  )
  # OPT counts them from the mask.
  if model.config.model_type != "opt":
    inputs["position_ids"] = torch.tensor(positions)
  with torch.no_grad():
    return model(**inputs).logits.numpy()


def test_logits_with_padding_and_packing(both):
  theirs, model, params = both
  actual = twin.jit(model.apply)(
    {"params": params}, TOKENS, SEGMENTS, POSITIONS
  )
  for row in range(4):
    for segment in set(SEGMENTS[row]) - {0}:
      at = SEGMENTS[row] == segment
      mask = np.ones((1, at.sum()), int)
      expected = their_logits(
        theirs, TOKENS[row][None, at], mask, POSITIONS[row][None, at]
      )
      np.testing.assert_allclose(actual[row, at], expected[0], atol=1e-4)
  # And as they see padding themselves.
  expected = their_logits(
    theirs, TOKENS[:3], (SEGMENTS[:3] > 0).astype(int), POSITIONS[:3]
  )
  real = SEGMENTS[:3] > 0
  np.testing.assert_allclose(actual[:3][real], expected[real], atol=1e-4)
  assert np.std(actual) > 0.5


def test_greedy_text_with_a_cache(both):
  theirs, model, params = both
  prompts, mask = TOKENS[:2, :8], SEGMENTS[:2, :8] > 0
  rollout = twin.jit(
    lambda p: generate(
      model,
      p,
      PromptBatch(
        tokens=jnp.asarray(prompts, jnp.int32),
        mask=jnp.asarray(mask),
        ids=jnp.arange(2),
      ),
      jax.random.key(0),
      SamplingParams(max_new_tokens=8, temperature=0.0, eos_id=1, pad_id=0),
    )
  )(params)
  with torch.no_grad():
    expected = theirs.generate(
      torch.tensor(prompts),
      attention_mask=torch.tensor(mask.astype(int)),
      max_new_tokens=8,
      do_sample=False,
    ).numpy()
  width = expected.shape[1]
  np.testing.assert_array_equal(rollout.tokens[:, 8:width], expected[:, 8:])
  # The log-probabilities that were recorded are those of their full pass.
  tokens = np.asarray(rollout.tokens)
  logits = their_logits(
    theirs,
    tokens,
    np.asarray(rollout.segments),
    np.asarray(rollout.positions),
  )
  logp = twin.log_softmax(logits)[:, 7:-1]
  logp = np.take_along_axis(logp, tokens[:, 8:, None], axis=2)[..., 0]
  real = np.asarray(rollout.response_mask)
  np.testing.assert_allclose(
    np.asarray(rollout.logp)[real], logp[real], atol=1e-4
  )


def test_there_and_back_is_the_identity(both, tmp_path):
  theirs, model, params = both
  family = directory.save(
    tmp_path / "ours",
    directory.flatten_leaves(params),
    model.config,
    {},
    ids=tiny.IDS,
    max_file_size=5000,
  )
  assert list(tmp_path.glob("ours/model-00001-of-*.safetensors"))
  again = tiny.load(tmp_path / "ours")
  assert type(again) is type(theirs) or family.model_type == "llama"
  expected = theirs.state_dict()
  for name, value in again.state_dict().items():
    torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
  source = directory.inspect(tiny.save(again, tmp_path / "again"))
  assert families.canonicalize(source.config) == families.canonicalize(
    model.config
  )
  jax.tree.map(np.testing.assert_array_equal, params_of(source, model), params)


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2", "gemma3"])
def test_reward_scores(name, tmp_path):
  theirs = tiny.make(name, scalar=True)
  source = directory.inspect(tiny.save(theirs, tmp_path / "theirs"))
  assert source.scalar
  model = ScalarModel(source.config)
  params = params_of(source, model)
  params["head"]["bias"] = jnp.asarray([0.7], jnp.float32)
  apply = twin.jit(model.apply)
  tokens = np.where(SEGMENTS[:3] > 0, TOKENS[:3], 0)
  rows = tokens, SEGMENTS[:3], POSITIONS[:3]
  last = [11, 11, 6]
  actual = np.asarray(apply({"params": params}, *rows))[range(3), last]

  family = directory.save(
    tmp_path / "ours",
    directory.flatten_leaves(params),
    model.config,
    {},
    ids=tiny.IDS,
  )
  assert family.reward_class == type(theirs).__name__
  again = tiny.load(tmp_path / "ours", scalar=True)
  expected = their_logits(again, tokens, *rows[1:])[:, 0]
  raw = json.loads((tmp_path / "ours" / "config.json").read_text())
  shift = raw["instructgpt_jax_score_shift"]
  # A LayerNorm's bias takes the head's in; an RMSNorm has none.
  assert shift == (0 if name in ("gpt2", "opt") else pytest.approx(0.7))
  np.testing.assert_allclose(actual, expected + shift, atol=1e-4)
  source = directory.inspect(tmp_path / "ours")
  back = apply({"params": params_of(source, model)}, *rows)
  np.testing.assert_allclose(
    np.asarray(back)[range(3), last], actual, atol=1e-5
  )


@pytest.mark.parametrize("scan", [False, True])
def test_stacked_layers_and_a_filled_up_vocabulary(scan, tmp_path):
  """Gemma 3: layers of two kinds, also in one scan."""
  theirs = tiny.make("gemma3")
  source = directory.inspect(tiny.save(theirs, tmp_path / "theirs"))
  plain = LanguageModel(source.config)
  wide = LanguageModel(
    dataclasses.replace(source.config, scan_layers=scan, vocab_padding=3)
  )
  params = params_of(source, wide)
  a = twin.jit(plain.apply)(
    {"params": params_of(source, plain)}, TOKENS, SEGMENTS, POSITIONS
  )
  b = twin.jit(wide.apply)({"params": params}, TOKENS, SEGMENTS, POSITIONS)
  np.testing.assert_allclose(a, b[..., :40], atol=1e-5)
  assert (jax.nn.softmax(b)[..., 40:] == 0).all()
  directory.save(
    tmp_path / "ours",
    directory.flatten_leaves(params),
    wide.config,
    {},
    ids=tiny.IDS,
  )
  expected = theirs.state_dict()
  for name, value in tiny.load(tmp_path / "ours").state_dict().items():
    torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_our_networks_have_an_architecture():
  for name in presets.NAMES:
    config = presets.model(name)
    assert families.family_for(config).model_type == "gpt2", name


def test_the_table_matches_the_docs():
  path = pathlib.Path(interop.__file__).parents[2] / "docs" / "models.md"
  text = path.read_text()
  for family in families.FAMILIES.values():
    assert f"`{family.model_type}`" in text
