"""Recipes: the GPT-3 family, the paper's settings by size, and small ones.

The paper prints settings at 1.3B, 6B and 175B (arXiv:2203.02155, C.1-C.4).
Other sizes of the family take those of the nearest printed size by ratio: up to
2.7B of 1.3B, 6.7B and 13B of 6B. Pretraining follows GPT-3 (arXiv:2005.14165,
table 2.1 and appendix B). `tiny` and `world` are ours, for two CPU cores.

The paper scores every policy with one 6B reward model: `reward` at 6b is its
recipe, and other sizes change the network only.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError

EvaluationT = TypeVar("EvaluationT", bound=configs.Evaluation)
LabelingT = TypeVar("LabelingT", bound=configs.Labeling)


def _gpt3(layers: int, width: int, heads: int, remat: str) -> configs.Model:
  return configs.Model(
    num_layers=layers,
    d_model=width,
    num_heads=heads,
    max_seq_len=2048,
    dtype="bfloat16",
    scan_layers=True,
    remat=remat,
  )


# arXiv:2005.14165, table 2.1. It prints 24 heads at 1.3B, which do not divide
# the width; 16 heads of 128 are used here.
MODELS: dict[str, configs.Model] = {
  "125m": _gpt3(12, 768, 12, "none"),
  "350m": _gpt3(24, 1024, 16, "none"),
  "760m": _gpt3(24, 1536, 16, "none"),
  "1.3b": _gpt3(24, 2048, 16, "dots"),
  "2.7b": _gpt3(32, 2560, 32, "dots"),
  "6.7b": _gpt3(32, 4096, 32, "dots"),
  "13b": _gpt3(40, 5120, 40, "full"),
  "175b": _gpt3(96, 12288, 96, "full"),
  # 0.8M parameters in the blocks, about 1M with a vocabulary of 2,048.
  "tiny": configs.Model(
    num_layers=4, d_model=128, num_heads=4, max_seq_len=256
  ),
  # Few heads, a wide start and sinusoidal positions: with them, looking things
  # up in a text is learned within a million tokens; without them, not at all.
  "world": configs.Model(
    num_layers=4,
    d_model=128,
    num_heads=2,
    max_seq_len=96,
    init_std=0.08,
    position_init="sinusoid",
  ),
}
ALIASES = {"6b": "6.7b"}
NAMES = (*MODELS, *ALIASES)
SMALL = ("tiny", "world")


@dataclasses.dataclass(frozen=True)
class _Printed:
  """What the paper prints by model size."""

  sft_rate: float  # C.1
  batch: int  # C.1, C.3: SFT and policy initialisation
  init_rate: float  # C.3
  ppo_rate: float  # C.4, best of the sweep
  ptx_rate: float  # C.4, best of the sweep
  value_rate: float  # C.4


_PRINTED = {
  "1.3b": _Printed(9.65e-6, 32, 5e-6, 3.74e-6, 1.18e-5, 9e-6),
  "6b": _Printed(9.65e-6, 32, 1.04e-5, 2.55e-6, 1.18e-5, 9e-6),
  "175b": _Printed(5.03e-6, 8, 2.45e-6, 2.55e-6, 2.55e-6, 5e-6),
}
_NEAREST = {
  "125m": "1.3b",
  "350m": "1.3b",
  "760m": "1.3b",
  "1.3b": "1.3b",
  "2.7b": "1.3b",
  "6.7b": "6b",
  "13b": "6b",
  "175b": "175b",
}

# Rows of 2,048 tokens a batch, and the learning rate (table 2.1).
_PRETRAINING = {
  "125m": (256, 6e-4),
  "350m": (256, 3e-4),
  "760m": (256, 2.5e-4),
  "1.3b": (512, 2e-4),
  "2.7b": (512, 1.6e-4),
  "6.7b": (1024, 1.2e-4),
  "13b": (1024, 1e-4),
  "175b": (1600, 6e-5),
}
_PRETRAINING_TOKENS = 300e9
_WARMUP_TOKENS = 375e6


def canonical(preset: str, field: str = "--preset") -> str:
  """Returns the name of a preset, aliases resolved.

  Raises:
    UserError: there is no such preset.
  """
  name = ALIASES.get(preset.lower(), preset.lower())
  if name not in MODELS:
    raise UserError(
      f"there is no preset {preset!r}",
      field=field,
      fix=configs.nearest(name, NAMES) or f"give one of {', '.join(NAMES)}",
      code="unknown_preset",
    )
  return name


def model(preset: str, field: str = "--preset") -> configs.Model:
  """Returns the model of a preset; `field` is the flag that errors name."""
  return MODELS[canonical(preset, field)]


def _base(preset: str) -> dict:
  """Returns the model, tokenizer, data and run settings of a preset."""
  if preset == "tiny":
    return dict(
      model=MODELS[preset],
      tokenizer=configs.Tokenizer(vocab_size=2048),
      data=configs.Data(max_prompt_tokens=160, max_response_tokens=80),
      run=configs.Run(log_every=10, save_every=200),
    )
  if preset == "world":
    return dict(
      model=MODELS[preset],
      tokenizer=configs.Tokenizer(vocab_size=1024, kind="word"),
      data=configs.Data(
        max_prompt_tokens=48,
        max_response_tokens=24,
        user_tag="U:",
        assistant_tag="A:",
        turn_separator=" ",
        common_prefix_chars=None,
      ),
      run=configs.Run(log_every=10, save_every=200),
    )
  return dict(model=MODELS[preset])


def _pretrain(preset: str) -> configs.PretrainStage:
  if preset in SMALL:
    tiny = preset == "tiny"
    return configs.PretrainStage(
      steps=1000 if tiny else 2400,
      batch_size=16,
      sequence=128 if tiny else 64,
      eval_every=200 if tiny else 400,
      optimizer=configs.Optimizer(
        learning_rate=3e-3 if tiny else 1.2e-3,
        warmup_steps=50,
        weight_decay=0.1,
        b2=0.98,
      ),
    )
  rows, rate = _PRETRAINING[preset]
  tokens = rows * 2048
  return configs.PretrainStage(
    steps=round(_PRETRAINING_TOKENS / tokens),
    batch_size=rows,
    optimizer=configs.Optimizer(
      learning_rate=rate,
      weight_decay=0.1,
      warmup_steps=math.ceil(_WARMUP_TOKENS / tokens),
    ),
  )


def _sft(preset: str) -> configs.SftStage:
  if preset in SMALL:
    world = preset == "world"
    return configs.SftStage(
      epochs=2 if world else 4,
      batch_size=32,
      dropout=0.0 if world else 0.1,
      select_samples=8 if world else 1,
      optimizer=configs.Optimizer(learning_rate=1e-3),
    )
  printed = _PRINTED[_NEAREST[preset]]
  return configs.SftStage(
    batch_size=printed.batch,
    optimizer=configs.Optimizer(learning_rate=printed.sft_rate),
  )


def _policy_init(preset: str) -> configs.SftStage:
  sft = configs.SftStage(epochs=2, pretraining_fraction=0.1, select_by="last")
  if preset in SMALL:
    return dataclasses.replace(
      sft,
      batch_size=32,
      dropout=0.0,
      optimizer=configs.Optimizer(learning_rate=1e-3),
    )
  printed = _PRINTED[_NEAREST[preset]]
  return dataclasses.replace(
    sft,
    batch_size=printed.batch,
    optimizer=configs.Optimizer(learning_rate=printed.init_rate),
  )


def _reward_init(preset: str) -> configs.RewardInitStage:
  if preset in SMALL:
    return configs.RewardInitStage(
      batch_size=16,
      optimizer=configs.Optimizer(learning_rate=1e-3, warmup_steps=20),
    )
  return configs.RewardInitStage()


def _reward(preset: str) -> configs.RewardStage:
  if preset == "world":
    return configs.RewardStage(
      init_from="base",
      batch_size=8,
      optimizer=configs.Optimizer(learning_rate=1.5e-4, warmup_steps=20),
    )
  if preset in SMALL:
    return configs.RewardStage(
      batch_size=8,
      optimizer=configs.Optimizer(learning_rate=5e-4, warmup_steps=20),
    )
  return configs.RewardStage()


def _ppo(preset: str) -> configs.PpoStage:
  """Returns PPO-ptx's settings, with the optimizers of PPO."""
  if preset in SMALL:
    # A fixed β of 0.02 lets so small a policy run away from its reference.
    tiny = preset == "tiny"
    return configs.PpoStage(
      episodes=2560 if tiny else 5120,
      rollout_batch=64,
      minibatch=32,
      kl_coef=0.12,
      ptx_coef=2.5,
      ptx_ratio=1 if tiny else 2,
      ptx_microbatch=64,
      ptx_sequence=128 if tiny else 64,
      # 10 of 80 updates and 20 of 160: an eighth of the run. The paper's 0.992
      # spans 125 updates, of its 4,000.
      ema_decay=0.9 if tiny else 0.95,
      optimizer=_warmed(3e-4),
      value_optimizer=_warmed(3e-4),
    )
  printed = _PRINTED[_NEAREST[preset]]
  return configs.PpoStage(
    optimizer=_warmed(printed.ppo_rate),
    value_optimizer=_warmed(printed.value_rate),
  )


def _ppo_ptx(preset: str) -> configs.PpoPtxStage:
  if preset in SMALL:
    return configs.PpoPtxStage(optimizer=_warmed(5e-4))
  rate = _PRINTED[_NEAREST[preset]].ptx_rate
  return configs.PpoPtxStage(optimizer=_warmed(rate))


def _warmed(rate: float) -> configs.Optimizer:
  """Returns a constant rate, warmed up over `ppo.warmup_iterations` (C.4).

  The warm-up begins at a tenth. The paper states neither Adam's ε nor clipping.
  A gradient clipped to norm 1 over 175B weights is 2.4e-6 a weight: ε = 1e-5
  would reduce the step to a fifth. The default of 1e-8 hardly changes it.
  """
  return configs.Optimizer(
    learning_rate=rate, schedule="constant", warmup_steps=-1, warmup_init=0.1
  )


def pretrain(preset: str) -> configs.PretrainExperiment:
  """Returns the recipe of language modelling on raw text (GPT-3's)."""
  preset = canonical(preset)
  stage = _pretrain(preset)
  return configs.PretrainExperiment(
    **_base(preset), pretrain=stage.section, optimizer=stage.optimizer
  )


def sft(preset: str) -> configs.SftExperiment:
  """Returns the recipe of supervised fine-tuning (C.1)."""
  preset = canonical(preset)
  stage = _sft(preset)
  return configs.SftExperiment(
    **_base(preset), sft=stage.section, optimizer=stage.optimizer
  )


def policy_init(preset: str) -> configs.SftExperiment:
  """Returns the recipe of PPO's start: 10 % pretraining data (C.3)."""
  preset = canonical(preset)
  stage = _policy_init(preset)
  return configs.SftExperiment(
    **_base(preset), sft=stage.section, optimizer=stage.optimizer
  )


def reward(preset: str) -> configs.RewardExperiment:
  """Returns the recipe of the reward model (C.2)."""
  preset = canonical(preset)
  stage = _reward(preset)
  return configs.RewardExperiment(
    **_base(preset), reward=stage.section, optimizer=stage.optimizer
  )


def ppo(preset: str) -> configs.PpoExperiment:
  """Returns the recipe of PPO without the pretraining term: γ = 0 (C.4)."""
  preset = canonical(preset)
  stage = _ppo(preset)
  return configs.PpoExperiment(
    **_base(preset),
    ppo=dataclasses.replace(stage.section, ptx_coef=0.0),
    optimizer=stage.optimizer,
    value_optimizer=stage.value_optimizer,
  )


def ppo_ptx(preset: str) -> configs.PpoExperiment:
  """Returns the recipe of PPO-ptx: γ = 27.8 (C.4)."""
  preset = canonical(preset)
  stage = _ppo(preset)
  return configs.PpoExperiment(
    **_base(preset),
    ppo=stage.section,
    optimizer=_ppo_ptx(preset).optimizer,
    value_optimizer=stage.value_optimizer,
  )


def pipeline(preset: str) -> configs.PipelineExperiment:
  """Returns the recipes of all stages at one size."""
  preset = canonical(preset)
  return configs.PipelineExperiment(
    **_base(preset),
    pretrain=_pretrain(preset),
    sft=_sft(preset),
    policy_init=_policy_init(preset),
    labeling=_pipeline_labeling(preset),
    reward_init=_reward_init(preset),
    reward=_reward(preset),
    ppo=_ppo(preset),
    ppo_ptx=_ppo_ptx(preset),
    evaluation=_evaluation(preset, configs.PipelineEvaluation),
  )


def _labeling(preset: str, section: type[LabelingT]) -> LabelingT:
  # Each round closes holes that the policy before it found in the reward model.
  return section(prompts=3000, rounds=2) if preset in SMALL else section()


def _pipeline_labeling(preset: str) -> configs.PipelineLabeling:
  section = _labeling(preset, configs.PipelineLabeling)
  episodes = 2560 if preset in SMALL else section.probe_episodes
  return dataclasses.replace(section, probe_episodes=episodes)


def _evaluation(preset: str, section: type[EvaluationT]) -> EvaluationT:
  if preset == "tiny":
    return section(prompts=100, samples=1, batch_size=64)
  if preset == "world":
    return section(prompts=1500, prefix_prompts=500)
  return section()


def evaluate(preset: str) -> configs.EvaluateExperiment:
  """Returns the recipe that measures one model on held-out prompts."""
  preset = canonical(preset)
  return configs.EvaluateExperiment(
    **_base(preset), evaluation=_evaluation(preset, configs.Evaluation)
  )


def labels(preset: str) -> configs.LabelsExperiment:
  """Returns how many answers of a pipeline's models are ranked."""
  preset = canonical(preset)
  return configs.LabelsExperiment(
    **_base(preset),
    labeling=_labeling(preset, configs.Labeling),
    evaluation=_evaluation(preset, configs.Evaluation),
  )


def reward_pairs(preset: str) -> configs.PairsExperiment:
  """Returns the recipe that measures what a model reads in pairs of replies."""
  preset = canonical(preset)
  return configs.PairsExperiment(
    **_base(preset), reward=_reward(preset).section
  )


EXPERIMENTS = {
  "pretrain": pretrain,
  "sft": sft,
  "policy_init": policy_init,
  "reward": reward,
  "ppo": ppo,
  "ppo_ptx": ppo_ptx,
  "evaluate": evaluate,
  "labels": labels,
  "reward_pairs": reward_pairs,
  "pipeline": pipeline,
}
