"""Configs of tokenizers and data sources."""

from __future__ import annotations

import dataclasses

from instructgpt_jax.configs.fields import Checked, is_date, option
from instructgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(Checked):
  """Which tokenizer; one is trained on the data when no path is given."""

  path: str = option(
    "", "a .model, a tokenizer.json, or a folder with encoder.json/vocab.bpe"
  )
  vocab_size: int = option(
    2048,
    "size of a trained sentencepiece vocabulary",
    unit="tokens",
    minimum=64,
  )
  kind: str = option(
    "bpe",
    "sentencepiece algorithm when one is trained",
    choices=("bpe", "unigram", "word"),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Checked):
  """Four sources; each a path, a quoted glob, a comma list, or tfds:…

  `explicit` names the fields of this section that the user has set. A limit
  that the user has set may drop most of a source. A setting that the user has
  not set is taken from the stage that a run starts from. `explicit` also names
  the learning rates that the user has set, such as optimizer.learning_rate.
  """

  demonstrations: str = option("", "prompt/completion records for SFT")
  comparisons: str = option("", "ranked or paired completions for the RM")
  prompts: str = option("", "prompts for PPO and evaluation")
  pretraining: str = option("", "documents for pretraining and ptx")
  user_tag: str = option("Human:", "stands before a user's turn")
  assistant_tag: str = option("Assistant:", "stands before a reply")
  turn_separator: str = option(
    "\\n\\n", "stands between turns; \\n means a new line"
  )
  chat_template: bool = option(
    True, "prompts by the tokenizer's chat template, where it has one"
  )
  template_date: str = option(
    "2025-01-01",
    "date, as YYYY-MM-DD, that a chat template gets when it asks for today's",
  )
  max_prompt_tokens: int = option(
    1024,
    "longer prompts are dropped and counted",
    unit="tokens",
    paper="C [P]",
    minimum=1,
  )
  max_response_tokens: int = option(
    1024, "longest response", unit="tokens", paper="C [P]", minimum=1
  )
  max_prompts_per_user: int = option(
    200, "prompts kept per user id", paper="A [P]", minimum=1
  )
  common_prefix_chars: int = option(
    200,
    "prompts of --data.prompts whose last turns begin with this many equal"
    " characters count as one; 0 compares whole prompts",
    unit="characters",
    paper="A [P], length [I]",
    minimum=0,
  )
  filter_personal: bool = option(
    True, "drop training records with personal information", paper="A [P]"
  )
  valid_fraction: float = option(
    0.1,
    "share of users for validation",
    paper="A [P], share [I]",
    minimum=0.0,
    maximum=0.5,
  )
  test_fraction: float = option(
    0.1,
    "share of users for test",
    paper="A [P], share [I]",
    minimum=0.0,
    maximum=0.5,
  )
  max_dropped: float = option(
    0.5,
    "largest share of a source's records that may be dropped or skipped; more"
    " is an error, unless you set the flag that drops the most",
    minimum=0.0,
    maximum=1.0,
  )
  explicit: str = option(
    "",
    "comma list of the data fields set by flag or --config; the program fills"
    " it in",
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
    """Whether the user has set a field of this section."""
    return name in self.explicit.split(",")
