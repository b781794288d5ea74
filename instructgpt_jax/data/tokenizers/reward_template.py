"""Chat templates of exported reward models.

RewardBench and other programs render a whole conversation by the tokenizer's
chat template, and take the score at its last token. This package takes it at
the token that ends the reply. Many templates write more behind that token, and
a tokenizer of prompts by tags has none. An exported reward model therefore gets
a template that ends where the score is read. `original` undoes that when a
directory is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from instructgpt_jax import configs
from instructgpt_jax.data import records
from instructgpt_jax.errors import UserError

if TYPE_CHECKING:
  from instructgpt_jax.data.tokenizers.base import Tokenizer

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
_OPENS = "{% set rendered_conversation %}\n"
_CLOSES = "{% endset %}"
_TAGS = "{# Turns by tags #}"


def add_template(
  files: Mapping[str, bytes], tokenizer: Tokenizer, data: configs.Data
) -> dict[str, bytes]:
  """Returns tokenizer files whose template ends with the end of a reply.

  Args:
    files: the files of an export.
    tokenizer: tokenizer of the reward model.
    data: its settings of prompts.
  """
  try:
    template = tokenizer.template
  except UserError:  # It cannot be used here, and is not changed.
    return dict(files)
  settings = json.loads(files[SETTINGS])
  if template is not None:
    text = _ending_with_reply(tokenizer)
  elif files.get(TEMPLATE, b"").strip() or settings.get("chat_template"):
    text = ""  # --data.chat_template=false; the directory keeps its template.
  else:
    text = _by_tags(tokenizer, data)
  if not text:
    return dict(files)
  if files.get(TEMPLATE):
    return {**files, TEMPLATE: text.encode()}
  settings["chat_template"] = _default(
    settings.get("chat_template") or "", lambda _: text
  )
  content = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
  return {**files, SETTINGS: content.encode()}


def original(text: str) -> str:
  """Returns a template as it was before `add_template`; "" if there was none.

  The line break at its end is lost, which Jinja leaves out as well.
  """
  if text.startswith(_TAGS):
    return ""
  if text.startswith(_OPENS) and _CLOSES in text:
    return text[len(_OPENS) : text.rindex(_CLOSES)]
  return text


def restored(settings: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns tokenizer_config.json as it was before `add_template`."""
  value = settings.get("chat_template") or ""
  before = _default(value, original)
  if before == value:
    return settings
  rest = {k: v for k, v in settings.items() if k != "chat_template"}
  return rest | {"chat_template": before} if before else rest


def _default(value: Any, change: Callable[[str], str]) -> Any:
  """Changes the template that is used by default: a text, or one of a list."""
  if isinstance(value, str):
    return change(value)
  if not isinstance(value, list):
    return value
  return [
    {**entry, "template": change(entry["template"])}
    if isinstance(entry, Mapping)
    and entry.get("name") == "default"
    and isinstance(entry.get("template"), str)
    else entry
    for entry in value
  ]


def _ending_with_reply(tokenizer: Tokenizer) -> str:
  """Returns the template without what it writes behind a reply.

  It is "" where the tokenizer's own ends there.
  """
  template = tokenizer.template
  assert template is not None
  end = tokenizer.token(tokenizer.eos_id)
  if template.end and (template.end != end or not template.trail):
    return ""
  text = template.text.removesuffix("\n")  # Jinja leaves it out.
  return (
    f"{_OPENS}{text}{_CLOSES}"
    "{{ rendered_conversation if add_generation_prompt or"
    " messages[-1]['role'] != 'assistant' else"
    f" rendered_conversation.removesuffix({_literal(template.trail)})"
    f" ~ {_literal('' if template.end else end)} }}}}"
  )


def _by_tags(tokenizer: Tokenizer, data: configs.Data) -> str:
  """Returns a template that writes turns as `records.prompt_text` does."""
  end = tokenizer.token(tokenizer.document_end_id)
  user, reply, between = (
    _literal(text)
    for text in (data.user_tag, data.assistant_tag, records.separator(data))
  )
  return end and (
    f"{_TAGS}{{% for message in messages %}}"
    f"{{% if not loop.first %}}{{{{ {between} }}}}{{% endif %}}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    f"{{{{ {reply} ~ ('' if text[:1] == ' ' and text[:2] != '  ' else ' ')"
    f" ~ text ~ {_literal(end)} }}}}"
    "{% elif message['role'] == 'assistant' %}"
    f"{{{{ {reply} ~ (' ' if {reply} else '') ~ text }}}}"
    "{% elif message['role'] == 'user' %}"
    f"{{{{ {user} ~ (' ' if {user} else '') ~ text }}}}"
    "{% else %}{{ text }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    f"{{{{ {between} ~ {reply} }}}}{{% endif %}}"
  )


def _literal(text: str) -> str:
  """Writes a text as a literal of Jinja."""
  return json.dumps(text, ensure_ascii=False)
