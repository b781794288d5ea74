"""Configs of the training stages: pretraining, SFT, reward model, PPO."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from instructgpt_jax.configs.fields import Checked, option
from instructgpt_jax.configs.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Checked):
  """Language modelling on raw text, packed rows."""

  steps: int = option(1000, "optimiser updates", unit="updates", minimum=1)
  batch_size: int = option(
    512, "rows a step", unit="rows", paper="GPT-3 table 2.1", minimum=1
  )
  microbatch: int = option(
    0, "rows per accumulated microbatch; 0 is the whole batch", minimum=0
  )
  sequence: int = option(
    0, "row length; 0 is the model's context", unit="tokens", minimum=0
  )
  dropout: float = option(0.0, "residual dropout", minimum=0.0, maximum=0.99)
  eval_every: int = option(
    200, "validation loss every so many steps", minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sft(Checked):
  """Supervised fine-tuning on demonstrations."""

  epochs: int = option(16, "passes over the data", paper="C.1 [P]", minimum=1)
  batch_size: int = option(
    32, "demonstrations a step", unit="examples", paper="C.1 [P]", minimum=1
  )
  microbatch: int = option(
    0, "examples per accumulated microbatch; 0 is the whole batch", minimum=0
  )
  pack: bool = option(True, "pack several demonstrations into a row")
  mask_prompt: bool = option(
    True, "loss on completions only", paper="unstated [I]"
  )
  pretraining_fraction: float = option(
    0.0,
    "share of pretraining rows mixed in",
    paper="C.3: 0.1 [P]",
    minimum=0.0,
    maximum=0.9,
  )
  dropout: float = option(
    0.2, "residual dropout", paper="C.1 [P]", minimum=0.0, maximum=0.99
  )
  select_by: str = option(
    "auto",
    "what chooses the checkpoint: RM score when a reward model is given",
    paper="C.1 [P]",
    choices=("auto", "reward", "loss", "last"),
  )
  reward_model: str = option("", "workdir of a reward model for selection")
  select_prompts: int = option(
    256,
    "most validation prompts answered for selection",
    unit="prompts",
    minimum=1,
  )
  select_samples: int = option(
    1, "answers to each of them", unit="samples", minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(Checked):
  """The reward model: K ranked completions of a prompt are one element."""

  epochs: int = option(1, "passes over the data", paper="C.2 [P]", minimum=1)
  batch_size: int = option(
    64,
    "prompts a step, each with its K completions",
    unit="prompts",
    paper="C.2 [P]",
    minimum=1,
  )
  microbatch: int = option(
    0, "prompts per accumulated microbatch; 0 is the whole batch", minimum=0
  )
  dropout: float = option(
    0.0, "residual dropout", paper="unstated [I]", minimum=0.0, maximum=0.99
  )
  normalize: bool = option(
    True,
    "set the bias so that demonstrations score 0 on average",
    paper="3.5 [P]",
  )
  pairs: bool = option(
    False,
    "each pair is an element of its own, shuffled among all: overfits",
    paper="3.5 [P]: what not to do",
  )
  max_rankings: int = option(
    0, "rankings trained on; 0 is all", unit="prompts", minimum=0
  )
  max_completions: int = option(
    0, "completions kept of each ranking; 0 is all", minimum=0, maximum=9
  )
  leave_out: str = option(
    "",
    "labelers whose rankings are not trained on but tested on, comma list",
    paper="E.2 [P]: five-fold cross-validation",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ppo(Checked):
  """PPO and PPO-ptx. Defaults follow arXiv:2203.02155, appendix C.4."""

  episodes: int = option(
    256_000, "episodes in all", unit="episodes", paper="C.4 [P]", minimum=1
  )
  rollout_batch: int = option(
    512, "episodes an iteration", unit="episodes", paper="C.4 [P]", minimum=1
  )
  minibatch: int = option(
    64, "episodes an update", unit="episodes", paper="C.4 [P]", minimum=1
  )
  microbatch: int = option(
    0,
    "rows of packed episodes at a time; 0 is a quarter of the minibatch or more"
    " on one device, all of it on several",
    minimum=0,
  )
  inner_epochs: int = option(
    1, "passes over a rollout batch", paper="C.4 [P]", minimum=1
  )
  warmup_iterations: int = option(
    10,
    "length of the linear warm-up of optimizers whose warmup_steps is -1",
    unit="iterations",
    paper="C.4 [P]",
    minimum=0,
  )
  kl_coef: float = option(
    0.02,
    "β, per-token penalty towards the initial policy",
    paper="C.4 [P]",
    minimum=0.0,
  )
  kl_target: float = option(
    0.0,
    "KL of an episode that an adaptive β aims at; 0 keeps β fixed",
    unit="nats",
    paper="lm-human-preferences [C]",
    minimum=0.0,
  )
  kl_horizon: float = option(
    10_000.0,
    "episodes over which β adapts",
    unit="episodes",
    paper="lm-human-preferences [C]",
    above=0.0,
  )
  ptx_coef: float = option(
    27.8,
    "γ, weight of the pretraining loss; 0 is plain PPO",
    paper="C.4 [P]",
    minimum=0.0,
  )
  ptx_ratio: int = option(
    8, "pretraining rows per episode", paper="C.4 [P]", minimum=1
  )
  ptx_microbatch: int = option(
    64, "pretraining rows per accumulated microbatch", unit="rows", minimum=1
  )
  ptx_sequence: int = option(
    0,
    "length of those rows; 0 is the model's context",
    unit="tokens",
    minimum=0,
  )
  clip_ratio: float = option(
    0.2,
    "half-width of the policy's trust interval",
    paper="C.4 [P]",
    above=0.0,
    maximum=1.0,
  )
  clip_value: float = option(
    0.2,
    "half-width around the rollout's values; 0 is off",
    paper="unstated; lineage [I]",
    minimum=0.0,
  )
  discount: float = option(
    1.0, "no discount", paper="C.4 [P]", minimum=0.0, maximum=1.0
  )
  gae_lambda: float = option(
    0.95,
    "λ of generalised advantage estimation",
    paper="unstated [I]",
    minimum=0.0,
    maximum=1.0,
  )
  whiten_rewards: bool = option(
    False,
    "divide rewards by their deviation, mean kept",
    paper="lm-human-preferences [C]",
  )
  whiten_advantages: bool = option(
    True, "mean 0 and variance 1 over the batch", paper="lineage [I]"
  )
  temperature: float = option(
    1.0, "of sampling and of every log-probability", paper="C.4 [P]", above=0.0
  )
  top_k: int = option(0, "refused in training when not 0", minimum=0, maximum=0)
  top_p: float = option(
    1.0, "refused in training when not 1", minimum=1.0, maximum=1.0
  )
  eos_penalty: float = option(
    0.0,
    "score taken away from a response that never ended",
    paper="lineage [C]",
    minimum=0.0,
  )
  bootstrap_truncated: bool = option(
    False,
    "value after a truncated response is V instead of 0",
    paper="unstated [I]",
  )
  value_from_reward: bool = option(
    True, "value network starts as the reward model", paper="C.4 [P]"
  )
  ema_decay: float = option(
    0.992,
    "decay of the averaged weights, applied once per update; 0 saves the last"
    " weights; the average is bias-corrected, as in Adam",
    paper="C.4 [P]",
    minimum=0.0,
    maximum=0.999999,
  )
  reward_model: str = option("", "workdir of the reward model")
  snapshot_every: int = option(
    0,
    "the policy of every so many iterations stays in snapshots/; 0 is none",
    unit="iterations",
    minimum=0,
  )


PPO_OPTIMIZER = Optimizer(
  learning_rate=1.18e-5,
  schedule="constant",
  warmup_steps=-1,
  warmup_init=0.1,
)
VALUE_OPTIMIZER = dataclasses.replace(PPO_OPTIMIZER, learning_rate=9e-6)

# A stage of the pipeline: the section of its experiment, and its optimizers.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainStage(Pretrain):
  """Language modelling on raw text, as a stage of the pipeline."""

  optimizer: Optimizer = Optimizer(
    learning_rate=2e-4, weight_decay=0.1, warmup_steps=100
  )

  @property
  def section(self) -> Pretrain:
    """Returns the settings without the optimizer."""
    return _narrow(self, Pretrain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftStage(Sft):
  """Supervised fine-tuning, as a stage of the pipeline."""

  optimizer: Optimizer = Optimizer()

  @property
  def section(self) -> Sft:
    """Returns the settings without the optimizer."""
    return _narrow(self, Sft)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardStage(Reward):
  """Reward modelling, as a stage of the pipeline."""

  optimizer: Optimizer = Optimizer(learning_rate=9e-6)

  @property
  def section(self) -> Reward:
    """Returns the settings without the optimizer."""
    return _narrow(self, Reward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoStage(Ppo):
  """PPO and PPO-ptx, as stages of the pipeline.

  Both have these settings; PPO sets γ to 0. `optimizer` is that of PPO,
  `value_optimizer` that of both.
  """

  optimizer: Optimizer = PPO_OPTIMIZER
  value_optimizer: Optimizer = VALUE_OPTIMIZER

  @property
  def section(self) -> Ppo:
    """Returns the settings without the optimizers."""
    return _narrow(self, Ppo)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoPtxStage(Checked):
  """PPO-ptx, as a stage of the pipeline: what differs from PPO."""

  optimizer: Optimizer = PPO_OPTIMIZER


S = TypeVar("S")


def _narrow(stage: S, kind: type[S]) -> S:
  """Returns the fields of a base class of a stage."""
  names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
  return kind(**{name: getattr(stage, name) for name in names})
