"""Configs of the embedded world, of labeling, and of evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from instructgpt_jax.configs.fields import Checked, option
from instructgpt_jax.configs.stages import RewardModels


@dataclasses.dataclass(frozen=True, kw_only=True)
class World(Checked):
  """Sizes of the embedded world's files, which are used without other data."""

  pretraining_tokens: int = option(
    2_500_000, "Number of words of web text.", unit="tokens", minimum=1000
  )
  demonstrations: int = option(
    1400, "Number of training demonstrations.", unit="examples", minimum=10
  )
  public_comparisons: int = option(
    24_000,
    "Number of the web's questions whose replies its readers ranked; 0 writes"
    " none.",
    unit="questions",
    minimum=0,
  )
  train_prompts: int = option(
    6000, "Number of prompts for PPO and labeling.", unit="prompts", minimum=10
  )
  test_prompts: int = option(
    1800, "Number of held-out prompts.", unit="prompts", minimum=10
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeling(Checked):
  """Rankings of the models' samples by the world's labelers."""

  prompts: int = option(
    1000,
    "Number of prompts ranked per round; more than there are repeats them.",
    unit="prompts",
    minimum=1,
  )
  completions: int = option(
    6,
    "Number of completions ranked per prompt, K.",
    paper="3.5 [P]: 4 to 9",
    minimum=2,
    maximum=9,
  )
  rounds: int = option(
    2,
    "Number of rounds; later rounds rank samples of the newest policy.",
    paper="3.1 [P]",
    minimum=1,
  )
  valid_prompts: int = option(
    300,
    "Number of held-out prompts ranked per round, likewise.",
    unit="prompts",
    minimum=1,
  )
  noise: float = option(
    2.75,
    "Standard deviation of a labeler's rating from 1 to 7.",
    unit="points",
    minimum=0.0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineLabeling(Labeling):
  """Rankings in the rounds of a pipeline."""

  probe_episodes: int = option(
    1280,
    "Training episodes of the policy that a later round samples.",
    unit="episodes",
    minimum=1,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Checked):
  """What `reward_pairs` measures a model with."""

  world: str = option("", "Directory of the embedded world, whose gold judges.")
  held_out: str = option(
    "",
    "Rankings whose validation split is measured, a comma list of files.",
  )
  ensemble: str = option(
    "",
    "Reward models that form an ensemble with that of init_from, a comma list"
    " of directories; each kind of ensemble is measured beside it.",
  )
  train_rankings: int = option(
    2000,
    "Maximum number of training rankings that are measured, or that a probe of"
    " a language model is fitted on.",
    unit="prompts",
    minimum=10,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Checked):
  """Size and settings of the evaluation."""

  prompts: int = option(
    1000,
    "Number of held-out prompts.",
    unit="prompts",
    paper="3,196 [P]",
    minimum=1,
  )
  split: Literal["test", "valid", "train"] = option(
    "test",
    "Split of --data.prompts to evaluate on; the models were trained on train.",
  )
  samples: int = option(
    2,
    "Number of samples per prompt at temperature 1.",
    unit="samples",
    minimum=1,
  )
  best_of_n: int = option(
    8,
    "Number of samples from which the reward model picks one.",
    unit="samples",
    minimum=1,
  )
  bootstrap: int = option(
    2000, "Number of bootstrap resamples over distinct prompts.", minimum=100
  )
  batch_size: int = option(128, "Decoding batch size.", unit="rows", minimum=1)
  prefix_prompts: int = option(
    200,
    "Number of validation prompts on which a prefix is chosen.",
    unit="prompts",
    minimum=1,
  )
  judge_fraction: float = option(
    0.4,
    "Share of the rankings that train the judge where there is no gold judge.",
    above=0.0,
    maximum=0.9,
  )
  prefixes: str = option(
    "",
    "Candidate prefixes of the prompted baseline, separated by |.",
    paper="B [P]: four candidates",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineEvaluation(Evaluation):
  """Evaluation of all models at the end of a pipeline."""

  tasks: str = option(
    "",
    "Public tasks beside the world's: a comma list of TASK=FILE, such as"
    " hellaswag=hellaswag_val.jsonl; docs/tasks.md has all of them.",
  )
  task_items: int = option(
    100, "Items drawn from each task's file; 0 takes all.", minimum=0
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(RewardModels):
  """What `evaluate` measures a model with."""

  start: str = option(
    "", "Workdir of the policy's start, the reference of the KL divergence."
  )
  world: str = option("", "Directory of the embedded world, whose gold judges.")
  judge: str = option(
    "", "Workdir of a reward model that judges where there is no gold judge."
  )
  prefix: str = option(
    "", "Text before each prompt; auto lets the reward model choose one."
  )
  filter: str = option(
    "",
    "Phrases separated by |. An answer that contains one is sampled again, up"
    " to evaluation.best_of_n times, and then replaced by measure.refusal.",
  )
  refusal: str = option(
    "i can not help with that .", "Answer that replaces a filtered one."
  )
  samples_kept: int = option(
    0,
    "Number of answers per prompt whose gold and reward scores are saved for"
    " best-of-n curves.",
    unit="samples",
    minimum=0,
  )
  task_items: int = option(
    250, "Number of items of each public task; 0 skips the tasks.", minimum=0
  )
  tasks: str = option(
    "",
    "Public tasks beside the world's: a comma list of TASK=FILE, such as"
    " hellaswag=hellaswag_val.jsonl; docs/tasks.md has all of them.",
  )
  rows: int = option(
    1024, "Number of held-out rows for the LM loss; 0 skips it.", minimum=0
  )
  sequence: int | None = option(
    None,
    "Length of these rows; none uses the model's max_seq_len.",
    unit="tokens",
    minimum=1,
  )
