"""Writes a conversation as a text: by a chat template, or by a stage's tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import records
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.training.stage_model import Stage


class ChatFormat(NamedTuple):
  """How a model's conversations are written.

  Attributes:
    tokenizer: its tokenizer, whose chat template writes them.
    tags: settings that a stage was trained with: the tags that write them where
      there is no template; None for other models.
    path: the model, for errors.
  """

  tokenizer: Tokenizer
  tags: configs.Data | None = None
  path: str = ""

  @classmethod
  def of_stage(cls, stage: Stage) -> ChatFormat:
    """Returns the format of a stage."""
    has_tags = stage.source is None and stage.has_prompts
    return cls(stage.tokenizer, stage.data if has_tags else None, stage.path)

  def require(self, field: str = "") -> None:
    """Refuses a model without a format.

    Raises:
      UserError: `no_chat_template`; or the template cannot be used.
    """
    if self.tokenizer.template is None and self.tags is None:
      raise UserError(
        "was not trained on conversations: it has no chat template",
        file=self.path,
        field=field or None,
        fix="give a chat model, or ask without a chat template",
        code="no_chat_template",
      )

  def write(self, turns: Sequence[Turn], *, reply_follows: bool) -> str:
    """Writes turns.

    Args:
      turns: the turns.
      reply_follows: whether an assistant's turn is opened at the end; else the
        text ends with that of the last turn, which can be continued.

    Raises:
      UserError: `no_chat_template`; or the template refuses the conversation.
    """
    self.require()
    if self.tokenizer.template is None:
      assert self.tags is not None
      if reply_follows:
        return records.prompt_text(tuple(turns), self.tags)
      *before, last = turns
      opened = records.prompt_text(tuple(before), self.tags)
      return opened + records.completion_text(last.text)
    date = (self.tags or configs.Data()).template_date
    text = self.tokenizer.template.render(
      turns, reply_follows=reply_follows, date=date
    )
    if reply_follows:
      return text
    whole, text_alone = turns[-1].text.lstrip(), turns[-1].text.strip()
    start = text.rfind(text_alone)
    if start < 0:
      raise UserError(
        "its chat template changes the text of a turn, which cannot go on",
        file=self.path,
        fix="end the conversation with the user's turn",
        code="template_changes_reply",
      )
    last = whole if text.startswith(whole, start) else text_alone
    return text[: start + len(last)]
