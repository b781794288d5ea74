"""Settings of pretrained models by size. docs/models.md names their sources."""

from __future__ import annotations

import dataclasses
import math

ADAPTER_RANK, ADAPTER_ALPHA = 16, 32.0
_ADAPTER_FACTOR = 10.0
_MAX_ADAPTER_RATE = 2e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeClass:
  """Settings of networks of one range of sizes.

  Attributes:
    name: the range.
    below: number of parameters at which the next class begins.
    sft_rate: learning rate of SFT and of the policy's initialisation.
    sft_epochs: epochs of SFT.
    reward_rate: learning rate of the reward model.
    reward_batch: prompts per update of the reward model.
    ppo_rate: learning rate of PPO.
    ptx_rate: learning rate of PPO-ptx.
    value_rate: learning rate of the value network.
    kl_coef: coefficient β of the KL penalty.
    ptx_coef: coefficient γ of the pretraining loss.
    ptx_ratio: pretraining rows per episode.
    episodes: episodes of PPO.
    rollout_batch: episodes per iteration.
    minibatch: episodes per update.
    adapters: whether LoRA replaces full training that does not fit.
    remat: what the backward pass recomputes, if that fits.
  """

  name: str
  below: float
  sft_rate: float
  sft_epochs: int
  reward_rate: float
  reward_batch: int
  ppo_rate: float
  ptx_rate: float
  value_rate: float
  kl_coef: float
  ptx_coef: float
  ptx_ratio: int
  episodes: int
  rollout_batch: int
  minibatch: int
  adapters: bool
  remat: str


SIZES = (
  SizeClass(
    name="up to 0.5B",
    below=0.5e9,
    sft_rate=5e-5,
    sft_epochs=2,
    reward_rate=1e-5,
    reward_batch=16,
    ppo_rate=1e-5,
    ptx_rate=2e-5,
    value_rate=1e-5,
    kl_coef=0.05,
    ptx_coef=2.5,
    ptx_ratio=1,
    episodes=51_200,
    rollout_batch=256,
    minibatch=64,
    adapters=False,
    remat="none",
  ),
  SizeClass(
    name="0.5B to 3B",
    below=3e9,
    sft_rate=2e-5,
    sft_epochs=3,
    reward_rate=9e-6,
    reward_batch=64,
    ppo_rate=3e-6,
    ptx_rate=1.18e-5,
    value_rate=9e-6,
    kl_coef=0.05,
    ptx_coef=27.8,
    ptx_ratio=8,
    episodes=102_400,
    rollout_batch=512,
    minibatch=64,
    adapters=True,
    remat="dots",
  ),
  SizeClass(
    name="3B to 20B",
    below=20e9,
    sft_rate=1e-5,
    sft_epochs=3,
    reward_rate=9e-6,
    reward_batch=64,
    ppo_rate=2.55e-6,
    ptx_rate=1.18e-5,
    value_rate=9e-6,
    kl_coef=0.02,
    ptx_coef=27.8,
    ptx_ratio=8,
    episodes=102_400,
    rollout_batch=512,
    minibatch=64,
    adapters=True,
    remat="dots",
  ),
  SizeClass(
    name="above 20B",
    below=math.inf,
    sft_rate=5e-6,
    sft_epochs=1,
    reward_rate=3e-6,
    reward_batch=64,
    ppo_rate=5e-7,
    ptx_rate=2.55e-6,
    value_rate=5e-6,
    kl_coef=0.02,
    ptx_coef=27.8,
    ptx_ratio=8,
    episodes=102_400,
    rollout_batch=512,
    minibatch=64,
    adapters=True,
    remat="full",
  ),
)
# A run on a CPU ends within hours.
_CPU_LIMITS = dict(episodes=2048, rollout_batch=64, minibatch=32, ptx_ratio=1)


def size_class(parameters: int, platform: str) -> SizeClass:
  """Returns the settings of a network on a platform.

  Args:
    parameters: its number of parameters.
    platform: "cpu", "cuda" or "tpu".
  """
  size = next(size for size in SIZES if parameters < size.below)
  if platform != "cpu":
    return size
  smaller = {
    name: min(getattr(size, name), limit) for name, limit in _CPU_LIMITS.items()
  }
  return dataclasses.replace(size, **smaller)


def adapter_rate(rate: float) -> float:
  """Returns the learning rate of adapters for that of all weights."""
  return float(f"{min(_ADAPTER_FACTOR * rate, _MAX_ADAPTER_RATE):.3g}")
