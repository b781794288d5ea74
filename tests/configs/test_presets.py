"""Tests that recipes have the paper's numbers; any changed recipe fails."""

import dataclasses

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from tests import update_golden

# arXiv:2005.14165 table 2.1: layers, width, heads, tokens a batch, rate; 16
# heads at 1.3B, see presets.
FAMILY = {
  "125m": (12, 768, 12, 0.5e6, 6e-4),
  "350m": (24, 1024, 16, 0.5e6, 3e-4),
  "760m": (24, 1536, 16, 0.5e6, 2.5e-4),
  "1.3b": (24, 2048, 16, 1e6, 2e-4),
  "2.7b": (32, 2560, 32, 1e6, 1.6e-4),
  "6.7b": (32, 4096, 32, 2e6, 1.2e-4),
  "13b": (40, 5120, 40, 2e6, 1e-4),
  "175b": (96, 12288, 96, 3.2e6, 6e-5),
}
SIZES = {
  "125m": 125e6,
  "350m": 350e6,
  "760m": 760e6,
  "1.3b": 1.3e9,
  "2.7b": 2.7e9,
  "6.7b": 6.7e9,
  "13b": 13e9,
  "175b": 175e9,
}


@pytest.mark.parametrize("name", FAMILY)
def test_family(name):
  layers, width, heads, tokens, rate = FAMILY[name]
  model = presets.model(name)
  assert (model.num_layers, model.d_model, model.num_heads) == (
    layers,
    width,
    heads,
  )
  assert (model.max_seq_len, model.mlp_ratio) == (2048, 4)
  assert model.dtype == "bfloat16" and model.scan_layers
  recipe = presets.pretrain(name)
  assert recipe.optimizer.learning_rate == rate
  tokens_per_batch = recipe.pretrain.batch_size * model.max_seq_len
  # The table rounds 2^19, 2^20 and 2^21.
  assert abs(tokens_per_batch / tokens - 1) < 0.05


@pytest.mark.parametrize("name", FAMILY)
def test_family_has_the_size_in_its_name(name):
  model = presets.model(name)
  count = (
    12 * model.num_layers * model.d_model**2 + (50257 + 2048) * model.d_model
  )
  assert abs(count / SIZES[name] - 1) < 0.07


def test_tiny_has_about_a_million_parameters():
  model, words = presets.model("tiny"), presets.sft("tiny").tokenizer.vocab_size
  count = 12 * model.num_layers * model.d_model**2
  count += (words + model.max_seq_len) * model.d_model
  assert 0.9e6 < count < 1.2e6


def test_training_steps_see_300_billion_tokens():
  for name in FAMILY:
    recipe = presets.pretrain(name)
    rows = recipe.pretrain.steps * recipe.pretrain.batch_size
    assert abs(rows * recipe.model.max_seq_len / 300e9 - 1) < 0.01


@pytest.mark.parametrize(
  "preset, sft, init, batch, ppo, ptx, value",
  [
    ("1.3b", 9.65e-6, 5e-6, 32, 3.74e-6, 1.18e-5, 9e-6),
    ("6b", 9.65e-6, 1.04e-5, 32, 2.55e-6, 1.18e-5, 9e-6),
    ("175b", 5.03e-6, 2.45e-6, 8, 2.55e-6, 2.55e-6, 5e-6),
  ],
)
def test_printed_settings(preset, sft, init, batch, ppo, ptx, value):
  recipe = presets.sft(preset)
  assert recipe.optimizer.learning_rate == sft
  assert recipe.optimizer.schedule == "cosine"
  assert recipe.optimizer.final_fraction == 0.1
  assert recipe.optimizer.warmup_steps == 0
  assert (recipe.optimizer.b1, recipe.optimizer.b2) == (0.9, 0.95)
  assert (recipe.sft.epochs, recipe.sft.batch_size) == (16, batch)
  assert recipe.sft.dropout == 0.2
  assert recipe.sft.pretraining_fraction == 0.0

  recipe = presets.policy_init(preset)
  assert recipe.optimizer.learning_rate == init
  assert (recipe.sft.epochs, recipe.sft.batch_size) == (2, batch)
  assert recipe.sft.pretraining_fraction == 0.1

  recipe = presets.reward(preset)
  assert recipe.optimizer.learning_rate == 9e-6
  assert (recipe.reward.epochs, recipe.reward.batch_size) == (1, 64)

  for recipe, rate, gamma in (
    (presets.ppo(preset), ppo, 0.0),
    (presets.ppo_ptx(preset), ptx, 27.8),
  ):
    assert recipe.optimizer.learning_rate == rate
    assert recipe.value_optimizer.learning_rate == value
    for optimizer in (recipe.optimizer, recipe.value_optimizer):
      assert optimizer.schedule == "constant"
      assert optimizer.warmup_init == 0.1
    assert recipe.ppo.warmup_iterations == 10
    for optimizer in recipe.resolved_optimizers:
      assert optimizer.warmup_steps == 80  # ten iterations of eight updates
    settings = recipe.ppo
    assert settings.ptx_coef == gamma
    assert settings.episodes == 256_000
    assert (settings.rollout_batch, settings.minibatch) == (512, 64)
    assert (settings.inner_epochs, settings.ptx_ratio) == (1, 8)
    assert (settings.kl_coef, settings.clip_ratio) == (0.02, 0.2)
    assert (settings.discount, settings.temperature) == (1.0, 1.0)
    assert settings.ema_decay == 0.992

  recipe = presets.pipeline(preset)
  assert recipe.ppo.optimizer == presets.ppo(preset).optimizer
  assert recipe.ppo_ptx.optimizer == presets.ppo_ptx(preset).optimizer
  assert recipe.ppo.value_optimizer == presets.ppo(preset).value_optimizer
  assert recipe.ppo.section == presets.ppo_ptx(preset).ppo
  assert recipe.sft.section == presets.sft(preset).sft
  assert recipe.policy_init.section == presets.policy_init(preset).sft


@pytest.mark.parametrize(
  "name, printed", [("125m", "1.3b"), ("2.7b", "1.3b"), ("13b", "6b")]
)
def test_other_sizes_take_the_nearest_printed_recipe(name, printed):
  for get_config in (presets.sft, presets.policy_init, presets.ppo_ptx):
    expected = get_config(printed)
    actual = get_config(name)
    assert dataclasses.replace(actual, model=expected.model) == expected


@pytest.mark.parametrize(
  "changes, updates",
  [
    ({}, 8),
    ({"ppo.minibatch": 16}, 32),
    ({"ppo.rollout_batch": 64}, 1),
    ({"ppo.inner_epochs": 4}, 32),
    ({"ppo.rollout_batch": 256, "ppo.inner_epochs": 2}, 8),
  ],
)
@pytest.mark.parametrize("preset", ["125m", "1.3b", "175b"])
def test_the_warm_up_stays_at_ten_iterations(preset, changes, updates):
  for get_config in (presets.ppo, presets.ppo_ptx):
    recipe = flags.replace(get_config(preset), changes)
    assert recipe.ppo.updates_per_iteration == updates
    for optimizer in recipe.resolved_optimizers:
      assert optimizer.warmup_steps == 10 * updates
  # The pipeline's PPO stages take these very sections.
  whole = flags.replace(presets.pipeline(preset), changes)
  for policy in (whole.ppo.optimizer, whole.ppo_ptx.optimizer):
    stage = configs.PpoExperiment(
      ppo=whole.ppo.section,
      optimizer=policy,
      value_optimizer=whole.ppo.value_optimizer,
    )
    for optimizer in stage.resolved_optimizers:
      assert optimizer.warmup_steps == 10 * updates


def test_a_warm_up_that_is_set_in_updates_stays():
  recipe = flags.replace(
    presets.ppo("1.3b"),
    {"optimizer.warmup_steps": 0, "value_optimizer.warmup_steps": 7},
  )
  policy, value = recipe.resolved_optimizers
  assert (policy.warmup_steps, value.warmup_steps) == (0, 7)
  recipe = flags.replace(presets.ppo("1.3b"), {"ppo.warmup_iterations": 3})
  assert {o.warmup_steps for o in recipe.resolved_optimizers} == {24}


@pytest.mark.parametrize("preset", [*FAMILY, "tiny", "world"])
def test_epsilon_does_not_shrink_a_clipped_step(preset):
  """The gradient has norm clip_norm and is equal over all weights."""
  size = SIZES.get(preset, 1e6)
  whole = presets.pipeline(preset)
  for optimizer in (
    whole.pretrain.optimizer, whole.sft.optimizer, whole.policy_init.optimizer,
    whole.reward.optimizer, whole.ppo.optimizer, whole.ppo_ptx.optimizer,
    whole.ppo.value_optimizer,
  ):  # fmt: skip
    gradient = optimizer.clip_norm / size**0.5
    assert gradient / (gradient + optimizer.eps) > 0.99


@pytest.mark.parametrize("preset", [*FAMILY, "tiny", "world"])
def test_the_average_is_over_the_end_of_the_run(preset):
  section = presets.ppo_ptx(preset).ppo
  updates = section.episodes // section.rollout_batch
  updates *= section.updates_per_iteration
  assert 1 / (1 - section.ema_decay) <= updates / 8 + 1e-6


def test_names():
  assert presets.model("6B") == presets.model("6.7b")
  with pytest.raises(UserError, match="no preset '13bb'") as caught:
    presets.model("13bb")
  assert "'13b'" in caught.value.fix
  with pytest.raises(UserError) as caught:
    presets.model("zzzzzz")
  assert "tiny" in caught.value.fix


@pytest.mark.parametrize("name", update_golden.texts())
def test_golden(name):
  path = update_golden.GOLDEN / name
  assert path.exists(), "run python -m tests.update_golden"
  assert path.read_text(encoding="utf-8") == update_golden.texts()[name], (
    "a recipe moved; if that is meant, run python -m tests.update_golden"
  )


def test_every_golden_file_belongs_to_a_preset():
  names = {path.name for path in update_golden.GOLDEN.iterdir()}
  assert names == set(update_golden.texts())
