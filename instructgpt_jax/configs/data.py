"""Configs of tokenizers and data sources."""

from __future__ import annotations

import dataclasses
from typing import Literal

from instructgpt_jax.configs.fields import Checked, is_date, option
from instructgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(Checked):
  """Tokenizer; one is trained on the data when no path is given."""

  path: str = option(
    "",
    "Path of a .model file, a tokenizer.json, or a directory with encoder.json"
    " and vocab.bpe.",
  )
  vocab_size: int = option(
    2048,
    "Vocabulary size of a trained sentencepiece tokenizer.",
    unit="tokens",
    minimum=64,
  )
  kind: Literal["bpe", "unigram", "word"] = option(
    "bpe", "Algorithm of a trained sentencepiece tokenizer."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Checked):
  """Data sources: each a path, quoted glob, tfds:… or hf:…, or a list.

  A list has commas between its sources; each may have a weight after a colon.

  `explicit` names the flags that the user has set: fields of this section by
  their names, others by their dotted names, such as optimizer.learning_rate. A
  limit that the user has set may drop most of a source. A setting that the user
  has not set is taken from the stage that a run starts from, or from its
  recipe.
  """

  demonstrations: str = option("", "Prompt/completion records for SFT.")
  comparisons: str = option(
    "", "Ranked or paired completions for the reward model."
  )
  prompts: str = option("", "Prompts for PPO and evaluation.")
  pretraining: str = option("", "Documents for pretraining and PPO-ptx.")
  user_tag: str = option("Human:", "Text before a user's turn.")
  assistant_tag: str = option("Assistant:", "Text before a reply.")
  turn_separator: str = option(
    "\\n\\n", "Text between turns; \\n means a new line."
  )
  chat_template: bool = option(
    True, "Format prompts with the tokenizer's chat template, if it has one."
  )
  template_date: str = option(
    "2025-01-01",
    "Date, as YYYY-MM-DD, for chat templates that ask for today's date.",
  )
  max_prompt_tokens: int = option(
    1024,
    "Maximum prompt length; longer prompts are dropped and counted.",
    unit="tokens",
    paper="C [P]",
    minimum=1,
  )
  max_response_tokens: int = option(
    1024, "Maximum response length.", unit="tokens", paper="C [P]", minimum=1
  )
  max_prompts_per_user: int = option(
    200, "Maximum number of prompts per user id.", paper="A [P]", minimum=1
  )
  common_prefix_chars: int | None = option(
    200,
    "Prompts of --data.prompts whose last turns share a prefix of this length"
    " count as one; none compares whole prompts.",
    unit="characters",
    paper="A [P], length [I]",
    minimum=1,
  )
  filter_personal: bool = option(
    True, "Drop training records with personal information.", paper="A [P]"
  )
  valid_fraction: float = option(
    0.1,
    "Share of users for validation.",
    paper="A [P], share [I]",
    minimum=0.0,
    maximum=0.5,
  )
  test_fraction: float = option(
    0.1,
    "Share of users for test.",
    paper="A [P], share [I]",
    minimum=0.0,
    maximum=0.5,
  )
  max_dropped: float = option(
    0.5,
    "Maximum share of a source's records that may be dropped or skipped. More"
    " is an error, unless you set the flag that drops the most.",
    minimum=0.0,
    maximum=1.0,
  )
  explicit: str = option(
    "",
    "Comma list of the flags that the user has set; the program fills it in.",
  )

  def __post_init__(self):
    super().__post_init__()
    if not is_date(self.template_date):
      raise UserError(
        f"{self.template_date!r} is not a date",
        field="data.template_date",
        fix="give a date as YYYY-MM-DD, such as 2025-01-01",
        code="bad_date",
      )

  def is_explicit(self, name: str) -> bool:
    """Returns whether the user has set a flag, named as in `explicit`."""
    return name in self.explicit.split(",")
