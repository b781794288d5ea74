"""A recipe's values by size, device, memory and data; the user's values win."""

import dataclasses

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import checks, presets
from instructgpt_jax.recipes import recipe, sizes, values
from instructgpt_jax.recipes.limits import Lengths
from instructgpt_jax.recipes.values import Start
from instructgpt_jax.training import pretrained_rates

NETWORK = configs.Model(
  vocab_size=100, num_layers=2, d_model=64, num_heads=2, max_seq_len=4096
)
TRAINING = ("sft", "policy_init", "reward", "ppo", "ppo_ptx")
MILLION = 1_000_000
SIZES = {
  "up to 0.5B": 135 * MILLION,
  "0.5B to 3B": 1_700 * MILLION,
  "3B to 20B": 7_000 * MILLION,
  "above 20B": 70_000 * MILLION,
}


def start(parameters=135 * MILLION, platform="cuda", **changes):
  return Start(
    **{
      "model": NETWORK,
      "parameters": parameters,
      "dropout": 0.0,
      "platform": platform,
      **changes,
    }
  )


def choose(experiment, known=None, user=(), memory=None, peak=None):
  """Returns the recipe, and the config with it."""
  known, user = known or start(), dict(user)
  names = [name for name, _, _ in flags.leaves(_default(experiment))]
  assert set(user) <= set(names)
  base = flags.replace(_default(experiment), user)
  chosen = recipe.choose(
    experiment,
    base,
    known,
    user,
    memory=memory,
    peak=peak or (lambda *_: 0.0),
  )
  model = dataclasses.replace(base, model=known.model)
  return chosen, flags.replace(model, {**chosen.values, **user})


def _default(experiment):
  return presets.EXPERIMENTS[experiment]("1.3b")


@pytest.mark.parametrize("name", SIZES)
def test_the_size_decides(name):
  size = sizes.size_class(SIZES[name], "cuda")
  assert size.name == name
  known = start(SIZES[name])
  run = choose("sft", known)[1]
  assert run.optimizer.learning_rate == size.sft_rate
  assert run.sft.epochs == size.sft_epochs
  run = choose("reward", known)[1]
  assert run.optimizer.learning_rate == size.reward_rate
  run = choose("ppo_ptx", known)[1]
  assert run.optimizer.learning_rate == size.ptx_rate
  assert run.value_optimizer.learning_rate == size.value_rate
  assert (run.ppo.kl_coef, run.ppo.ptx_coef) == (size.kl_coef, size.ptx_coef)
  run = choose("ppo", known)[1]
  assert run.optimizer.learning_rate == size.ppo_rate
  assert run.ppo.ptx_coef == 0


def test_larger_networks_learn_more_slowly():
  for rate in ("sft_rate", "reward_rate", "ppo_rate", "ptx_rate"):
    rates = [getattr(size, rate) for size in sizes.SIZES]
    assert rates == sorted(rates, reverse=True)
  bounds = [size.below for size in sizes.SIZES]
  assert bounds == sorted(bounds) and bounds[-1] == float("inf")


def test_no_rate_is_one_of_training_from_nothing():
  """`pretrained_rates` would refuse the run."""
  from_nothing = pretrained_rates._rates(False)
  for size in sizes.SIZES:
    for name in ("sft", "reward", "ppo", "ptx", "value"):
      rate = getattr(size, f"{name}_rate")
      assert rate not in from_nothing
      assert sizes.adapter_rate(rate) not in from_nothing


@pytest.mark.parametrize("experiment", values.EXPERIMENTS)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_every_recipe_is_a_valid_config(experiment, platform):
  for parameters in SIZES.values():
    lengths = (
      Lengths("demonstrations", 1000, [100] * 20, [200] * 20),
      Lengths("comparisons", 500, [90] * 20, [250] * 20),
      Lengths("prompts", 400, [80] * 20, []),
    )
    chosen, run = choose(
      experiment, start(parameters, platform, lengths=lengths)
    )
    assert chosen.size.name in SIZES
    assert run.model.dtype == ("float32" if platform == "cpu" else "bfloat16")
    assert run.model.max_seq_len == NETWORK.max_seq_len
    if experiment == "pipeline":
      checks.check_pipeline(
        dataclasses.replace(run, init_from="hf"), run.model.max_seq_len
      )
      assert run.data.max_response_tokens == 256  # of the longest source
    else:
      checks.check_batches(run)


@pytest.mark.parametrize("experiment", values.EXPERIMENTS)
def test_what_the_user_has_set_stays(experiment):
  """Every value of a recipe can be set; the others stay as they were."""
  chosen = choose(experiment)[0].values
  others_follow = ("ppo.rollout_batch", "ppo.minibatch", "ppo.episodes")
  for name in chosen:
    user = {name: _default_value(experiment, name)}
    with_user = choose(experiment, user=user)[0].values
    assert name not in with_user
    if (
      name not in others_follow and "max_" not in name and "epochs" not in name
    ):
      assert {**with_user, name: chosen[name]} == chosen


def _default_value(experiment, name):
  leaves = {n: v for n, v, _ in flags.leaves(_default(experiment))}
  return leaves[name]


def test_dropout_is_that_of_the_network():
  for rate in (0.0, 0.1):
    for name in ("sft", "policy_init"):
      assert choose(name, start(dropout=rate))[1].sft.dropout == rate
  run = choose("pipeline", start(dropout=0.1))[1]
  assert run.sft.dropout == run.policy_init.dropout == 0.1


def test_warm_up_is_a_share_of_the_updates():
  lengths = (Lengths("demonstrations", 3200, [10], [10]),)
  run = choose("sft", start(lengths=lengths))[1]
  assert run.optimizer.warmup_steps == 6  # 3 % of 2 epochs of 100 updates
  run = choose("sft", start(lengths=lengths), {"sft.epochs": 1})[1]
  assert run.optimizer.warmup_steps == 3


def test_a_short_ppo_run_has_a_short_average_and_warm_up():
  run = choose("ppo", start(platform="cpu"))[1].ppo
  assert (run.episodes, run.rollout_batch, run.minibatch) == (2048, 64, 32)
  # 64 updates: the average spans 8 of them.
  assert (run.ema_decay, run.warmup_iterations) == (0.875, 3)
  long = choose("ppo", start(7_000 * MILLION))[1].ppo
  assert (long.ema_decay, long.warmup_iterations) == (0.992, 10)
  few = choose("ppo", start(), {"ppo.episodes": 32})[1].ppo
  assert (few.rollout_batch, few.minibatch) == (32, 32)
  assert few.ema_decay == 0
  odd = choose("ppo", start(), {"ppo.minibatch": 48})[1].ppo
  assert odd.rollout_batch % 48 == 0
  whole = choose("ppo", start(), {"ppo.rollout_batch": 96})[1].ppo
  assert 96 % whole.minibatch == 0


def test_limits_follow_the_data():
  lengths = (
    Lengths("demonstrations", 20, [40] * 19 + [900], [70] * 19 + [2000]),
  )
  data = choose("sft", start(lengths=lengths))[1].data
  assert (data.max_prompt_tokens, data.max_response_tokens) == (48, 80)
  user = {"data.max_response_tokens": 4000}
  data = choose("sft", start(lengths=lengths), user)[1].data
  assert (data.max_prompt_tokens, data.max_response_tokens) == (48, 4000)
  user = {"data.max_prompt_tokens": 4050}
  data = choose("sft", start(lengths=lengths), user)[1].data
  assert data.max_prompt_tokens + data.max_response_tokens == 4096


def test_ppo_has_the_responses_of_its_start():
  prompts = (Lengths("prompts", 10, [100] * 10, []),)
  data = choose("ppo", start(lengths=prompts, response_limit=33))[1].data
  assert (data.max_prompt_tokens, data.max_response_tokens) == (112, 33)
  tight = (Lengths("prompts", 10, [4090] * 10, []),)
  data = choose("ppo", start(lengths=tight, response_limit=33))[1].data
  assert data.max_prompt_tokens == 4096 - 33


def test_rows_are_no_longer_than_needed():
  run = choose("sft", start(platform="cpu"))[1]
  total = run.data.max_prompt_tokens + run.data.max_response_tokens
  assert total <= (run.sft.sequence or run.model.max_seq_len)
  lengths = (Lengths("demonstrations", 10, [100] * 10, [100] * 10),)
  known = start(platform="cpu", lengths=lengths)
  assert choose("sft", known)[1].sft.sequence == 512
  assert choose("sft", start(lengths=lengths))[1].sft.sequence == 2048
  long = (Lengths("demonstrations", 10, [600] * 10, [600] * 10),)
  known = start(platform="cpu", lengths=long)
  assert choose("sft", known)[1].sft.sequence == 1216
  short = dataclasses.replace(NETWORK, max_seq_len=256)
  assert choose("sft", start(model=short))[1].sft.sequence is None
  assert choose("ppo_ptx", start(platform="cpu"))[1].ppo.ptx_sequence == 256
  user = {"sft.sequence": 64}
  data = choose("sft", known, user)[1].data
  assert data.max_prompt_tokens + data.max_response_tokens <= 64


def linear_peak(experiment, config):
  """Bytes: 1 a row of a microbatch, 100 for the weights, 1 with adapters."""
  sections = {"sft": "sft", "policy_init": "sft", "reward": "reward"}
  resident = 1 if config.model.lora_rank else 100
  saved = {"none": 1.0, "dots": 0.5, "full": 0.25}[config.model.remat]
  if experiment in sections:
    section = getattr(config, sections[experiment])
    return resident + saved * (section.microbatch or section.batch_size)
  section = config.ppo
  rows = section.microbatch or section.minibatch // 4
  rows = max(rows, section.ptx_microbatch if section.ptx_coef else 0)
  return resident + max(saved * rows, section.rollout_batch / 8)


@pytest.mark.parametrize(
  "memory, microbatch, remat",
  [(200, None, "none"), (120, 16, "none"), (101.1, 1, "none"),
   (100.6, 1, "dots"), (100.3, 1, "full")],
)  # fmt: skip
def test_the_largest_microbatch_that_fits(memory, microbatch, remat):
  chosen, run = choose("sft", memory=memory, peak=linear_peak)
  assert (run.sft.microbatch, run.model.remat) == (microbatch, remat)
  assert chosen.fits and chosen.peak <= memory


def test_microbatches_of_ppo_and_of_the_reward_model():
  run = choose("reward", memory=105, peak=linear_peak)[1]
  assert run.reward.microbatch == 4
  run = choose("ppo_ptx", memory=140, peak=linear_peak)[1].ppo
  # Each is as large as fits: the default is a quarter of an update.
  assert (run.microbatch, run.ptx_microbatch) == (None, 32)
  assert run.rollout_batch == 256
  run = choose("ppo_ptx", memory=120, peak=linear_peak)[1].ppo
  assert run.rollout_batch == 128  # its KV cache would not fit
  checks.check_ppo_batches(run)


def test_rankings_are_estimated_with_their_completions():
  lengths = (Lengths("comparisons", 10, [9] * 10, [9] * 40, completions=4),)
  estimated = []

  def peak(_, config):
    estimated.append(config.reward.max_completions)
    return 0.0

  run = choose("reward", start(lengths=lengths), memory=1.0, peak=peak)[1]
  assert set(estimated) == {4}
  assert run.reward.max_completions is None


def test_a_microbatch_of_the_user_stays():
  chosen, run = choose(
    "sft", user={"sft.microbatch": 8}, memory=100.5, peak=linear_peak
  )
  assert run.sft.microbatch == 8 and not chosen.fits
  assert "sft.microbatch" not in chosen.values


def test_adapters_where_full_training_does_not_fit():
  known = start(7_000 * MILLION)
  full = choose("sft", known, memory=200, peak=linear_peak)[1]
  assert full.model.lora_rank is None
  lora = choose("sft", known, memory=50, peak=linear_peak)[1]
  assert lora.model.lora_rank == sizes.ADAPTER_RANK
  assert lora.optimizer.learning_rate == 1e-4
  # Small networks are trained whole, and the user decides first.
  small, run = choose("sft", memory=50, peak=linear_peak)
  assert run.model.lora_rank is None and not small.fits
  user = {"model.lora_rank": None}
  chosen, run = choose("sft", known, user, memory=50, peak=linear_peak)
  assert run.model.lora_rank is None and not chosen.fits


def test_adapters_of_the_user_or_of_the_start_are_kept():
  user = {"model.lora_rank": 8}
  run = choose("sft", user=user)[1]
  assert run.model.lora_rank == 8
  assert run.optimizer.learning_rate == 2e-4
  adapted = dataclasses.replace(NETWORK, lora_rank=4, lora_layers="mlp")
  run = choose("ppo", start(model=adapted))[1]
  assert (run.model.lora_rank, run.model.lora_layers) == (4, "mlp")
  assert run.optimizer.learning_rate == run.value_optimizer.learning_rate
  assert run.optimizer.learning_rate == 1e-4


def test_a_pipeline_has_the_values_of_its_stages():
  known = start(
    lengths=(
      Lengths("demonstrations", 3200, [100] * 9, [200] * 9),
      Lengths("comparisons", 640, [100] * 9, [200] * 9),
    )
  )
  whole = choose("pipeline", known)[1]
  for name in TRAINING:
    stage = choose(name, known)[1]
    section = getattr(whole, name)
    assert section.optimizer == stage.optimizer, name
    if hasattr(stage, "sft"):
      assert section.section == stage.sft
    if name == "reward":
      assert section.section == stage.reward
    if name == "ppo_ptx":
      assert whole.ppo.section == stage.ppo
      assert whole.ppo.value_optimizer == stage.value_optimizer


def test_public_comparisons_are_learned_like_rankings():
  user = {"reward_init.comparisons": "public.jsonl"}
  run = choose("pipeline", user=user)[1]
  assert run.reward_init.optimizer.learning_rate == (
    run.reward.optimizer.learning_rate
  )
  assert run.reward_init.batch_size == run.reward.batch_size

  def peak(_, run):
    section = getattr(run, "reward", None)
    return 10 * (section.microbatch or section.batch_size) if section else 0

  tight = choose("pipeline", user=user, memory=120, peak=peak)[1]
  assert tight.reward_init.microbatch == tight.reward.microbatch == 8


def test_a_pipeline_fits_as_a_whole():
  chosen, run = choose("pipeline", memory=120, peak=linear_peak)
  assert chosen.fits
  assert run.sft.microbatch == run.policy_init.microbatch == 16
  user = {"sft.microbatch": 2}
  run = choose("pipeline", user=user, memory=120, peak=linear_peak)[1]
  assert (run.sft.microbatch, run.policy_init.microbatch) == (2, 16)
