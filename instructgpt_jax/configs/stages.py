"""Configs of the training stages: pretraining, SFT, reward model, PPO."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar

from instructgpt_jax.configs.fields import Checked, option
from instructgpt_jax.configs.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskValidation(Checked):
  """Public tasks that a stage of a language model measures in its training."""

  tasks: str = option(
    "",
    "Public tasks that are measured before the first step and at the end: a"
    " comma list of TASK=FILE; docs/tasks.md has all of them.",
  )
  tasks_every: int | None = option(
    None,
    "Interval between further measurements of the tasks, in steps (of PPO:"
    " iterations); none has no further ones.",
    minimum=1,
  )
  task_items: int = option(
    100, "Items drawn from each task's file; 0 takes all.", minimum=0
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(TaskValidation):
  """Language modelling on rows of packed raw text."""

  steps: int = option(
    1000, "Number of optimizer updates.", unit="updates", minimum=1
  )
  batch_size: int = option(
    512, "Batch size.", unit="rows", paper="GPT-3 table 2.1", minimum=1
  )
  microbatch: int | None = option(
    None,
    "Microbatch size of gradient accumulation; none uses the whole batch.",
    unit="rows",
    minimum=1,
  )
  sequence: int | None = option(
    None,
    "Row length; none uses the model's max_seq_len.",
    unit="tokens",
    minimum=1,
  )
  dropout: float = option(
    0.0, "Residual dropout rate.", minimum=0.0, maximum=0.99
  )
  eval_every: int = option(
    200, "Interval between validation losses.", unit="steps", minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sft(TaskValidation):
  """Supervised fine-tuning on demonstrations."""

  epochs: int = option(16, "Number of epochs.", paper="C.1 [P]", minimum=1)
  batch_size: int = option(
    32,
    "Demonstrations per update.",
    unit="examples",
    paper="C.1 [P]",
    minimum=1,
  )
  microbatch: int | None = option(
    None,
    "Microbatch size of gradient accumulation; none uses the whole batch.",
    unit="examples",
    minimum=1,
  )
  sequence: int | None = option(
    None,
    "Row length; none uses the model's max_seq_len.",
    unit="tokens",
    minimum=1,
  )
  pack: bool = option(True, "Pack several demonstrations into a row.")
  mask_prompt: bool = option(
    True, "Compute the loss on completions only.", paper="unstated [I]"
  )
  loss_turns: Literal["last", "all"] = option(
    "last",
    "Assistant's turns of a conversation that carry loss: the last, or all that"
    " the data do not exclude. With mask_prompt=false all tokens carry loss.",
    paper="unstated [I]",
  )
  pretraining_fraction: float = option(
    0.0,
    "Share of pretraining rows in a batch.",
    paper="C.3: 0.1 [P]",
    minimum=0.0,
    maximum=0.9,
  )
  dropout: float = option(
    0.2, "Residual dropout rate.", paper="C.1 [P]", minimum=0.0, maximum=0.99
  )
  select_by: Literal["auto", "reward", "loss", "last"] = option(
    "auto",
    "How the checkpoint is chosen; auto uses the reward model's score if"
    " sft.reward_model is set, else the validation loss.",
    paper="C.1 [P]",
  )
  reward_model: str = option(
    "", "Workdir of a reward model that chooses the checkpoint."
  )
  select_prompts: int = option(
    256,
    "Maximum number of validation prompts to choose the checkpoint with.",
    unit="prompts",
    minimum=1,
  )
  select_samples: int = option(
    1, "Number of answers to each of these prompts.", unit="samples", minimum=1
  )
  samples_every: int | None = option(
    None,
    "Interval between answers to fixed validation prompts, in samples.jsonl;"
    " none writes none.",
    unit="steps",
    minimum=1,
  )
  sample_prompts: int = option(
    16, "Number of these validation prompts.", unit="prompts", minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(Checked):
  """Reward model, trained on batches of prompts with K completions each."""

  epochs: int = option(1, "Number of epochs.", paper="C.2 [P]", minimum=1)
  batch_size: int = option(
    64,
    "Prompts per update, each with its K completions.",
    unit="prompts",
    paper="C.2 [P]",
    minimum=1,
  )
  microbatch: int | None = option(
    None,
    "Microbatch size of gradient accumulation; none uses the whole batch.",
    unit="prompts",
    minimum=1,
  )
  dropout: float = option(
    0.0,
    "Residual dropout rate.",
    paper="unstated [I]",
    minimum=0.0,
    maximum=0.99,
  )
  normalize: bool = option(
    True,
    "Set the bias so that demonstrations score 0 on average.",
    paper="3.5 [P]",
  )
  label_smoothing: float = option(
    0.0,
    "Probability ε that a preference is taken to be wrong; 0 trusts all.",
    paper="unstated; conservative DPO [C]",
    minimum=0.0,
    maximum=0.49,
  )
  margin: Literal["rank", "grade"] | None = option(
    None,
    "Margin by which the better completion should win: in proportion to the"
    " difference of the ranks, or of the grades that rankings have; none has"
    " no margin.",
    paper="Llama 2 [C]",
  )
  margin_coef: float | None = option(
    None,
    "Margin of one step of rank or grade; none is 1/3.",
    unit="logits",
    paper="Llama 2 [C]",
    above=0.0,
  )
  pairs: bool = option(
    False,
    "Shuffle all pairs and train on each separately, which overfits.",
    paper="3.5 [P]: what not to do",
  )
  max_rankings: int | None = option(
    None, "Maximum number of training rankings.", unit="prompts", minimum=1
  )
  max_completions: int | None = option(
    None,
    "Maximum number of completions of each ranking.",
    minimum=2,
    maximum=9,
  )
  leave_out: str = option(
    "",
    "Comma list of labelers whose rankings are held out for the test.",
    paper="E.2 [P]: five-fold cross-validation",
  )

  @property
  def logits_per_grade(self) -> float:
    """Margin of one step of rank or grade, in logits."""
    return 1 / 3 if self.margin_coef is None else self.margin_coef


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModels(Checked):
  """The reward model that scores answers, or an ensemble of several."""

  reward_model: str = option(
    "", "Workdir of the reward model; a comma list is an ensemble."
  )
  reward_ensemble: Literal["mean", "worst", "mean_minus_deviation"] | None = (
    option(
      None,
      "How the scores of an ensemble are combined; none has a single model.",
    )
  )
  reward_deviation_coef: float | None = option(
    None,
    "Weight of the standard deviation in mean_minus_deviation; none is 1.",
    above=0.0,
  )

  @property
  def reward_models(self) -> tuple[str, ...]:
    """Workdirs of the reward models."""
    return tuple(self.reward_model.split(",")) if self.reward_model else ()

  @property
  def deviation_coef(self) -> float:
    """Weight of the standard deviation in mean_minus_deviation."""
    coef = self.reward_deviation_coef
    return 1.0 if coef is None else coef


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ppo(RewardModels, TaskValidation):
  """PPO and PPO-ptx; the defaults are those of arXiv:2203.02155, C.4."""

  episodes: int = option(
    256_000,
    "Total number of episodes.",
    unit="episodes",
    paper="C.4 [P]",
    minimum=1,
  )
  rollout_batch: int = option(
    512, "Episodes per iteration.", unit="episodes", paper="C.4 [P]", minimum=1
  )
  minibatch: int = option(
    64, "Episodes per update.", unit="episodes", paper="C.4 [P]", minimum=1
  )
  microbatch: int | None = option(
    None,
    "Microbatch size of gradient accumulation over packed episodes; none uses a"
    " quarter of the minibatch or more on one device, all of it on several.",
    unit="rows",
    minimum=1,
  )
  inner_epochs: int = option(
    1, "Number of epochs over a rollout batch.", paper="C.4 [P]", minimum=1
  )
  warmup_iterations: int = option(
    10,
    "Length of the linear warm-up of optimizers whose warmup_steps is -1.",
    unit="iterations",
    paper="C.4 [P]",
    minimum=0,
  )
  kl_coef: float = option(
    0.02,
    "Coefficient β of the per-token KL penalty towards the initial policy.",
    paper="C.4 [P]",
    minimum=0.0,
  )
  kl_target: float | None = option(
    None,
    "KL divergence per episode that an adaptive β aims at; none keeps β fixed.",
    unit="nats",
    paper="lm-human-preferences [C]",
    above=0.0,
  )
  kl_horizon: float = option(
    10_000.0,
    "Number of episodes over which β adapts.",
    unit="episodes",
    paper="lm-human-preferences [C]",
    above=0.0,
  )
  ptx_coef: float = option(
    27.8,
    "Coefficient γ of the pretraining loss; 0 is plain PPO.",
    paper="C.4 [P]",
    minimum=0.0,
  )
  ptx_ratio: int = option(
    8, "Pretraining rows per episode.", paper="C.4 [P]", minimum=1
  )
  ptx_microbatch: int = option(
    64,
    "Microbatch size of gradient accumulation over pretraining rows.",
    unit="rows",
    minimum=1,
  )
  ptx_sequence: int | None = option(
    None,
    "Length of pretraining rows; none uses the model's max_seq_len.",
    unit="tokens",
    minimum=1,
  )
  clip_ratio: float = option(
    0.2,
    "Clip range of the probability ratio.",
    paper="C.4 [P]",
    above=0.0,
    maximum=1.0,
  )
  clip_value: float | None = option(
    0.2,
    "Clip range of values around the rollout's; none does not clip.",
    paper="unstated; lineage [I]",
    above=0.0,
  )
  discount: float = option(
    1.0, "Discount factor.", paper="C.4 [P]", minimum=0.0, maximum=1.0
  )
  gae_lambda: float = option(
    0.95,
    "λ of generalised advantage estimation.",
    paper="unstated [I]",
    minimum=0.0,
    maximum=1.0,
  )
  whiten_rewards: bool = option(
    False,
    "Divide rewards by their standard deviation; the mean stays.",
    paper="lm-human-preferences [C]",
  )
  whiten_advantages: bool = option(
    True, "Normalise advantages to mean 0 and variance 1.", paper="lineage [I]"
  )
  temperature: float = option(
    1.0,
    "Temperature of sampling and of every log-probability.",
    paper="C.4 [P]",
    above=0.0,
  )
  eos_penalty: float = option(
    0.0,
    "Penalty of a response without end-of-text.",
    paper="lineage [C]",
    minimum=0.0,
  )
  bootstrap_truncated: bool = option(
    False,
    "Bootstrap the return of a truncated response with V instead of 0.",
    paper="unstated [I]",
  )
  value_from_reward: bool = option(
    True, "Initialise the value network from the reward model.", paper="C.4 [P]"
  )
  ema_decay: float = option(
    0.992,
    "Decay of the averaged weights per update, bias-corrected as in Adam; 0"
    " saves the last weights.",
    paper="C.4 [P]",
    minimum=0.0,
    maximum=0.999999,
  )
  stop_kl: float | None = option(
    None,
    "KL divergence per episode above which the run ends; none never ends it.",
    unit="nats",
    above=0.0,
  )
  eval_every: int | None = option(
    None,
    "Interval between evaluations on held-out prompts; none has none.",
    unit="iterations",
    minimum=1,
  )
  eval_prompts: int = option(
    256,
    "Maximum number of validation prompts of a held-out evaluation.",
    unit="prompts",
    minimum=1,
  )
  eval_samples: int = option(
    1, "Number of answers to each of these prompts.", unit="samples", minimum=1
  )
  eval_temperature: float = option(
    1.0,
    "Temperature of answers to held-out prompts; 0 is greedy.",
    minimum=0.0,
  )
  judge: str = option(
    "",
    "Workdir of a second reward model that judges answers to held-out prompts.",
  )
  samples_every: int | None = option(
    None,
    "Interval between answers to fixed validation prompts, in samples.jsonl;"
    " none writes none.",
    unit="iterations",
    minimum=1,
  )
  sample_prompts: int = option(
    16, "Number of these validation prompts.", unit="prompts", minimum=1
  )
  snapshot_every: int | None = option(
    None,
    "Interval between policies saved in snapshots/; none saves none.",
    unit="iterations",
    minimum=1,
  )

  @property
  def held_out_metrics(self) -> tuple[str, ...]:
    """Metrics of a held-out evaluation that can choose the saved policy."""
    if not self.eval_every:
      return ()
    return ("valid_rm_score", *(["valid_judge_score"] if self.judge else []))

  @property
  def num_iterations(self) -> int:
    """Number of iterations; the last one completes its rollout batch."""
    return -(-self.episodes // self.rollout_batch)

  @property
  def updates_per_iteration(self) -> int:
    """Number of optimizer updates on one rollout batch."""
    return self.inner_epochs * (self.rollout_batch // self.minibatch)

  @property
  def num_updates(self) -> int:
    """Number of optimizer updates of the run."""
    return self.num_iterations * self.updates_per_iteration


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

  init_from: str = option(
    "policy_init",
    "What reward models start from: `policy_init` or `base`, the stages of this"
    " pipeline, or another workdir, such as that of a larger model. With public"
    " comparisons (--reward_init.comparisons) those are trained on first.",
    paper="C.2 [P]: GPT-3 tuned on public NLP data; SFT is similar",
  )
  optimizer: Optimizer = Optimizer(learning_rate=9e-6)

  @property
  def section(self) -> Reward:
    """Returns the settings without the optimizer."""
    return _narrow(self, Reward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardInitStage(Reward):
  """Training on public comparisons, before reward models see any ranking.

  It starts from `reward.init_from`, and all reward models of the pipeline but
  the judge start from its result.
  """

  comparisons: str = option(
    "",
    "Public comparisons, which reward models are trained on before the"
    " labelers' rankings; empty goes without.",
    paper="C.2 [P]: GPT-3 tuned on public NLP data; comparisons: 2112.00861, 4",
  )
  optimizer: Optimizer = Optimizer(learning_rate=9e-6)

  @property
  def section(self) -> Reward:
    """Returns the settings of the training."""
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
  """PPO-ptx as a stage of the pipeline: the settings that differ from PPO's."""

  optimizer: Optimizer = PPO_OPTIMIZER


S = TypeVar("S")


def _narrow(stage: S, kind: type[S]) -> S:
  """Returns the fields of a base class of a stage."""
  names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
  return kind(**{name: getattr(stage, name) for name in names})
