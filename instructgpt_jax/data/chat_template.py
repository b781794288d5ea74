"""Chat templates: how a model's makers write a conversation down.

A template is a Jinja text that came with a model. It runs in Jinja's sandbox,
where it reaches neither files nor attributes.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError


class ChatTemplate:
  """Turns to text.

  Attributes:
    lead: what stands between the end of a prompt and its reply, such as " ".
  """

  def __init__(self, text: str, tokens: Mapping[str, str], file: str):
    """Compiles a template.

    Args:
      text: the template.
      tokens: names such as bos_token, and what they stand for.
      file: named in errors.
    """
    self._file, self._tokens = file, dict(tokens)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
      self._template = environment.from_string(text)
    except jinja2.TemplateError as error:
      raise UserError(
        f"its chat template cannot be read ({error})",
        file=file,
        fix="mend it, or leave it out with --data.chat_template=false",
      ) from error
    self.lead = self._lead()

  def render(self, turns: Sequence[Turn], *, reply_follows: bool = True) -> str:
    """A conversation as the model's makers write it.

    Raises:
      UserError: the template refuses it.
    """
    try:
      return self._template.render(
        messages=[{"role": t.role, "content": t.text} for t in turns],
        add_generation_prompt=reply_follows,
        tools=None,
        documents=None,
        **self._tokens,
      )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
      raise UserError(
        f"its chat template refuses a conversation ({error})",
        file=self._file,
        fix="give other turns, or --data.chat_template=false",
      ) from error

  def _lead(self) -> str:
    asked, told = Turn("user", "Q"), Turn("assistant", "\ue000")
    before = self.render([asked])
    whole = self.render([asked, told], reply_follows=False)
    found = whole.removeprefix(before).split("\ue000")[0]
    return found if whole.startswith(before) else ""


def _as_json(value: Any, indent: int | None = None, **options: Any) -> str:
  del options
  return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)
