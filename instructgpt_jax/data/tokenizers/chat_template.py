"""Chat templates: how a model expects a conversation as text.

A template is a Jinja text that came with a model. It runs in Jinja's sandbox,
where it reaches neither files nor attributes, nor a clock or chance: a template
that asks for today's date gets `data.template_date`.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from instructgpt_jax import configs
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError

# Texts that no template writes itself; they locate a turn in its output.
_QUESTION, _REPLY, _SYSTEM = "\ue000Q\ue001", "\ue000A\ue001", "\ue000S\ue001"
_LATER = "\ue000L\ue001"
_ROLES = {"user": _QUESTION, "assistant": _REPLY, "system": _SYSTEM}
_LEAVES_OUT = "template_leaves_out"
_DATE = configs.Data().template_date


class ChatTemplate:
  """Writes conversations as text.

  Attributes:
    context: what a template writes between a user's text and a reply.
    lead: what it writes between that and the reply's own text, such as " ".
    tail: what it writes between the reply's text and the token that ends it.
    end: the special token that ends a reply; "" where there is none.
    trail: what it writes behind that token, or behind the reply without one.
  """

  def __init__(
    self,
    text: str,
    tokens: Mapping[str, str],
    file: str,
    special: re.Pattern[str] | None = None,
  ):
    """Compiles a template.

    Args:
      text: the template.
      tokens: names such as bos_token, and what they stand for.
      file: named in errors.
      special: finds the special tokens that can end a reply.

    Raises:
      UserError: the template cannot be compiled, refuses a plain question, or
        leaves out its text or that of the reply.
    """
    self.text = text
    self._file, self._tokens = file, dict(tokens)
    try:
      self._template = _environment().from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
      raise UserError(
        f"its chat template cannot be read ({error})",
        file=file,
        fix="mend it, or leave it out with --data.chat_template=false",
        code="bad_chat_template",
      ) from error
    self._in_parts: frozenset[str] = frozenset()
    self._take_contents()
    self._before = self.render([Turn("user", _QUESTION)])
    self.context = self._before.rpartition(_QUESTION)[2] or "a"
    self.lead, self._rest = self._around_reply()
    match = special.search(self._rest) if special is not None else None
    self.end = match.group() if match else ""
    self.tail = self._rest[: match.start()] if match else ""
    self.trail = self._rest[match.end() :] if match else self._rest

  def render(
    self,
    turns: Sequence[Turn],
    *,
    reply_follows: bool = True,
    date: str = _DATE,
  ) -> str:
    """Writes a conversation as the model's makers do.

    Args:
      turns: the conversation.
      reply_follows: whether an assistant's turn is opened at the end.
      date: today's date to the template, as YYYY-MM-DD.

    Raises:
      UserError: the template refuses it, or leaves out what precedes the last
        turn.
    """
    if sum(t.role != "system" for t in turns) > 2:
      self._require_history()
    return self._render(turns, reply_follows, date)

  def _render(
    self, turns: Sequence[Turn], reply_follows: bool, date: str = _DATE
  ) -> str:
    """Renders turns without checking what the template leaves out."""
    day = datetime.datetime.fromisoformat(date)
    try:
      return self._template.render(
        messages=[self._message(turn) for turn in turns],
        add_generation_prompt=reply_follows,
        tools=None,
        documents=None,
        strftime_now=day.strftime,
        **self._tokens,
      )
    except Exception as error:  # a template is a program of somebody else's
      raise UserError(
        f"its chat template refuses a conversation ({error})",
        file=self._file,
        fix="give other turns, or --data.chat_template=false",
        code="template_refuses",
      ) from error

  def locate(
    self, turns: Sequence[Turn], index: int, date: str = ""
  ) -> tuple[str, int, int]:
    """Finds a reply in a conversation up to the next reply.

    Args:
      turns: the conversation.
      index: of the assistant's turn.
      date: as for `render`; "" is the default.

    Returns:
      The text that `render` writes, and where the reply begins and ends in it:
      with what the template writes ahead of a reply, and with the special token
      behind it.

    Raises:
      UserError: the template writes other turns otherwise where the text of the
        reply differs.
    """
    date = date or _DATE
    text = self.render(turns, date=date)
    marked = [*turns]
    marked[index] = Turn("assistant", _REPLY)
    ahead, reply, behind = self.render(marked, date=date).partition(_REPLY)
    if not reply or not (text.startswith(ahead) and text.endswith(behind)):
      raise UserError(
        "its chat template does not write a reply between the other turns",
        file=self._file,
        fix="give --sft.loss_turns=last, or --data.chat_template=false",
        code="template_changes_reply",
      )
    start, stop = len(ahead), len(text) - len(behind)
    if self.lead and ahead.endswith(self.lead):
      start -= len(self.lead)
    if self.end and behind.startswith(self.tail + self.end):
      stop += len(self.tail + self.end)
    return text, start, stop

  def reply(self, text: str) -> str:
    """Writes a reply as it follows a prompt, up to the token that ends it."""
    turns = [Turn("user", _QUESTION), Turn("assistant", text)]
    whole = self.render(turns, reply_follows=False)
    end = len(whole) - len(self._rest)
    start = len(self._before) if self._continues else whole.rfind(text, 0, end)
    if start < 0 or not whole.endswith(self._rest):
      return self.lead + text + self.tail
    return whole[start:end] + self.tail

  def _message(self, turn: Turn) -> dict[str, Any]:
    """Returns a turn as the template reads it."""
    if turn.role not in self._in_parts:
      return {"role": turn.role, "content": turn.text}
    parts = [{"type": "text", "text": turn.text}]
    return {"role": turn.role, "content": parts}

  def _take_contents(self) -> None:
    """Finds the roles whose content is a list of parts to the template.

    Templates of models that see images read it so, and write nothing of a text.

    Raises:
      UserError: the template leaves out a user's text, or a reply's.
    """
    question = Turn("user", _QUESTION)
    self._try_parts("user", [question], reply_follows=True)
    self._try_parts(
      "assistant", [question, Turn("assistant", _REPLY)], reply_follows=False
    )
    try:
      self._try_parts(
        "system", [Turn("system", _SYSTEM), question], reply_follows=True
      )
    except UserError:  # it takes no system turns
      pass

  def _try_parts(
    self, role: str, turns: Sequence[Turn], reply_follows: bool
  ) -> None:
    """Gives a role's content as text, or in parts if only these are written."""
    plain = self._in_parts
    errors: list[UserError] = []
    for self._in_parts in (plain, plain | {role}):
      try:
        if _ROLES[role] in self._render(turns, reply_follows):
          return
        errors.append(self._leaves_out(f"the {role}'s text"))
      except UserError as error:
        errors.append(error)
    self._in_parts = plain
    if role != "assistant" or errors[0].code == _LEAVES_OUT:
      raise errors[0]  # where it refuses a reply, it writes prompts alone

  def _leaves_out(self, text: str) -> UserError:
    return UserError(
      f"its chat template leaves out {text}",
      file=self._file,
      fix="give --data.chat_template=false",
      code=_LEAVES_OUT,
    )

  @functools.cached_property
  def _history(self) -> str:
    """Renders a conversation of three turns; "" where that is refused."""
    turns = [
      Turn("user", _QUESTION),
      Turn("assistant", _REPLY),
      Turn("user", _LATER),
    ]
    try:
      return self._render(turns, reply_follows=True)
    except UserError:
      return ""

  def _require_history(self) -> None:
    """Raises an error where a conversation's first turns are not written."""
    if not self._history:
      return
    if _REPLY not in self._history:
      raise self._leaves_out("the assistant's text ahead of the last turn")
    if _QUESTION not in self._history or _LATER not in self._history:
      raise self._leaves_out("the user's text of one of several turns")

  @functools.cached_property
  def takes_system(self) -> bool:
    """Returns whether the template renders system turns."""
    turns = [Turn("system", _SYSTEM), Turn("user", _QUESTION)]
    try:
      return _SYSTEM in self.render(turns)
    except UserError:
      return False

  def _around_reply(self) -> tuple[str, str]:
    """Returns (text ahead of a reply, all text behind it)."""
    turns = [Turn("user", _QUESTION), Turn("assistant", _REPLY)]
    try:
      whole = self.render(turns, reply_follows=False)
    except UserError:  # it writes prompts alone
      whole = ""
    ahead, reply, rest = whole.partition(_REPLY)
    self._continues = bool(reply) and ahead.startswith(self._before)
    return (ahead[len(self._before) :] if self._continues else ""), rest


class _Generation(jinja2.ext.Extension):
  """Reads {% generation %} … {% endgeneration %} and writes its content."""

  tags = {"generation"}

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    # What is set inside is not seen outside, as in `transformers`.
    return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> jinja2.Environment:
  """Returns a Jinja environment as chat templates expect it."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", _Generation],
  )
  environment.filters["tojson"] = _as_json
  environment.filters["random"] = _refuse_chance("random")
  environment.globals["lipsum"] = _refuse_chance("lipsum")
  environment.globals["raise_exception"] = _refuse
  return environment


def _as_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _refuse_chance(name: str) -> Callable[..., NoReturn]:
  def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    raise jinja2.TemplateError(f"{name} draws at random")

  return refuse
