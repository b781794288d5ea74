"""Configs of the embedded world, of labeling, and of evaluation."""

from __future__ import annotations

import dataclasses

from instructgpt_jax.configs.fields import Checked, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class World(Checked):
  """Sizes of the embedded world's files, used where no data are given."""

  pretraining_tokens: int = option(
    2_500_000, "words of the web", unit="tokens", minimum=1000
  )
  demonstrations: int = option(
    1400, "training demonstrations", unit="examples", minimum=10
  )
  train_prompts: int = option(
    6000, "for PPO and labeling", unit="prompts", minimum=10
  )
  test_prompts: int = option(
    1800, "held out for the report", unit="prompts", minimum=10
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeling(Checked):
  """Rankings of our own models' samples, by the world's labelers."""

  prompts: int = option(
    1000, "prompts ranked a round", unit="prompts", minimum=1
  )
  completions: int = option(
    6,
    "K, completions ranked a prompt",
    paper="3.5 [P]: 4 to 9",
    minimum=2,
    maximum=9,
  )
  rounds: int = option(
    2,
    "rounds of labeling; the second ranks the newest policy's samples",
    paper="3.1 [P]",
    minimum=1,
  )
  valid_prompts: int = option(
    300, "held-out prompts ranked a round", unit="prompts", minimum=1
  )
  probe_episodes: int = option(
    1280,
    "episodes of the early policy that a later round samples",
    unit="episodes",
    minimum=1,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Checked):
  """What the report measures."""

  prompts: int = option(
    1000, "held-out prompts", unit="prompts", paper="3,196 [P]", minimum=1
  )
  split: str = option(
    "test",
    "split of --data.prompts to evaluate on; train measures on prompts that the"
    " models were trained on",
    choices=("test", "valid", "train"),
  )
  samples: int = option(
    2, "samples a prompt at temperature 1", unit="samples", minimum=1
  )
  best_of_n: int = option(
    8, "samples from which the RM picks one", unit="samples", minimum=1
  )
  bootstrap: int = option(
    2000, "bootstrap resamples over distinct prompts", minimum=100
  )
  batch_size: int = option(128, "rows a decoding batch", minimum=1)
  prefix_prompts: int = option(
    200,
    "validation prompts on which a prefix is chosen",
    unit="prompts",
    minimum=1,
  )
  judge_fraction: float = option(
    0.4,
    "share of the rankings kept for the judge where there is no gold",
    above=0.0,
    maximum=0.9,
  )
  prefixes: str = option(
    "",
    "candidate prefixes of the prompted baseline, separated by |",
    paper="B [P]: four candidates",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Checked):
  """One model, measured as everything else is."""

  reward_model: str = option("", "workdir of the reward model that scores")
  start: str = option(
    "", "workdir of the policy's start, to which KL is measured"
  )
  world: str = option("", "folder of the embedded world, whose gold judges")
  judge: str = option("", "workdir of a reward model that judges, without gold")
  prefix: str = option(
    "", "text before each prompt; auto lets the reward model choose one"
  )
  filter: str = option(
    "",
    "phrases separated by |: an answer with one of them is drawn anew, up to"
    " evaluation.best_of_n times, and then refused",
  )
  refusal: str = option(
    "i can not help with that .", "what stands in for a filtered answer"
  )
  samples_kept: int = option(
    0,
    "answers a prompt whose gold and RM scores are kept for best-of-n curves",
    unit="samples",
    minimum=0,
  )
  task_items: int = option(
    250, "items of each public task; 0 leaves them out", minimum=0
  )
  rows: int = option(
    1024, "held-out rows for the LM loss; 0 leaves it out", minimum=0
  )
