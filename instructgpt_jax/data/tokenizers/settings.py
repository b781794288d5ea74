"""Reads the files beside a tokenizer that describe its tokens."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from instructgpt_jax.data.tokenizers import reward_template, special_tokens
from instructgpt_jax.errors import UserError

TEMPLATE = "chat_template.jinja"
# Saved with a stage and exported; the model's own two files are not.
_SAVED = (
  special_tokens.TOKENIZER_CONFIG,
  special_tokens.SPECIAL_MAP,
  special_tokens.ADDED,
  TEMPLATE,
)
_READ = (*_SAVED[:3], special_tokens.GENERATION, special_tokens.MODEL)


@dataclasses.dataclass(frozen=True)
class Template:
  """A chat template's text, or why there is none.

  Attributes:
    text: the template; "" for none.
    error: raised when the template is asked for, or None.
  """

  text: str = ""
  error: UserError | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """The files beside a tokenizer.

  Attributes:
    directory: where they are.
    files: name → parsed JSON of those that there are.
    saved: name → bytes of those that belong to the tokenizer.
  """

  directory: str
  files: Mapping[str, Mapping[str, Any]]
  saved: Mapping[str, bytes]

  @property
  def config(self) -> Mapping[str, Any]:
    """Returns tokenizer_config.json; empty where there is none."""
    return self.files.get(special_tokens.TOKENIZER_CONFIG, {})

  def added_tokens(self) -> dict[int, dict[str, Any]]:
    """Returns id → token of added_tokens.json and `added_tokens_decoder`.

    Raises:
      UserError: they give an id to two tokens, or two ids to a token.
    """
    names = set(
      special_tokens.named_tokens(self.files, self.directory).values()
    )
    tokens: dict[int, dict[str, Any]] = {}
    for key, value in _table(self.config.get("added_tokens_decoder")).items():
      if key.isdecimal() and special_tokens.token_text(value):
        token = (
          dict(value) if isinstance(value, Mapping) else {"content": value}
        )
        token["special"] = token.get("special") or token["content"] in names
        tokens[int(key)] = token
    ids = {token["content"]: i for i, token in tokens.items()}
    extra = self.files.get(special_tokens.ADDED, {})
    for text, i in extra.items():
      if type(i) is not int:
        continue
      other = tokens.get(i, {}).get("content", text)
      if other != text or ids.get(text, i) != i:
        config_file = special_tokens.TOKENIZER_CONFIG
        raise UserError(
          f"gives {text!r} the id {i}, where {config_file} has {other!r} as"
          f" {ids.get(text, i)}",
          file=f"{self.directory}/{special_tokens.ADDED}",
          field=text,
          fix="make the two files agree",
          code="added_token_conflict",
        )
      special = text in names or text in self.listed_special()
      tokens.setdefault(
        i, {"content": text, "special": special, "normalized": not special}
      )
    return dict(sorted(tokens.items()))

  def listed_special(self) -> set[str]:
    """Returns tokens that are special although no field is named for them."""
    texts = set()
    for file in (special_tokens.TOKENIZER_CONFIG, special_tokens.SPECIAL_MAP):
      for key in ("additional_special_tokens", "extra_special_tokens"):
        value = self.files.get(file, {}).get(key) or ()
        values = value.values() if isinstance(value, Mapping) else value
        texts |= {special_tokens.token_text(token) for token in values}
    return texts - {""}

  def template(self) -> Template:
    """Returns the chat template of its file or of tokenizer_config.json."""
    by_config = self._config_template()
    if TEMPLATE not in self.saved:
      return by_config
    text = self.saved[TEMPLATE].decode("utf-8", "replace")
    if by_config.text and by_config.text.strip() != text.strip():
      return Template(
        error=UserError(
          f"is another chat template than chat_template of"
          f" {special_tokens.TOKENIZER_CONFIG}",
          file=f"{self.directory}/{TEMPLATE}",
          field="chat_template",
          fix="remove one of the two, or give --data.chat_template=false",
          code="chat_template_conflict",
        )
      )
    return Template(text)

  def _config_template(self) -> Template:
    value = self.config.get("chat_template")
    if isinstance(value, list):
      pairs = [t for t in value if isinstance(t, Mapping)]
      value = {t.get("name"): t.get("template") for t in pairs}
    if not isinstance(value, Mapping):
      return Template(value if isinstance(value, str) else "")
    if isinstance(value.get("default"), str):
      return Template(value["default"])
    names = ", ".join(sorted(map(str, value)))
    return Template(
      error=UserError(
        f"has chat templates ({names}), but none called default",
        file=f"{self.directory}/{special_tokens.TOKENIZER_CONFIG}",
        field="chat_template",
        fix="name one of them default, or give --data.chat_template=false",
        code="no_default_chat_template",
      )
    )

  def with_config(self, values: Mapping[str, Any]) -> Settings:
    """Returns these settings with more fields in tokenizer_config.json."""
    name = special_tokens.TOKENIZER_CONFIG
    return dataclasses.replace(
      self,
      files={**self.files, name: {**self.config, **values}},
      saved=self.saved_with(values),
    )

  def saved_with(self, values: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns `saved` with more fields in tokenizer_config.json.

    A stage keeps the tokenizer's files alone, so that what config.json and
    generation_config.json say has to be in these.
    """
    files = dict(self.saved)
    if values:
      content = json.dumps({**self.config, **values}, indent=2)
      files[special_tokens.TOKENIZER_CONFIG] = content.encode() + b"\n"
    return files


def _table(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def read(directory: pathlib.Path) -> Settings:
  """Reads the files beside a tokenizer.

  Raises:
    UserError: one of them is damaged.
  """
  files: dict[str, Mapping[str, Any]] = {}
  saved: dict[str, bytes] = {}
  for name in _READ:
    path = directory / name
    if path.is_file():
      content = read_bytes(path)
      values = parsed(content, path)
      files[name] = reward_template.restored(values)
      if files[name] is not values:
        content = json.dumps(files[name], indent=2).encode() + b"\n"
      if name in _SAVED:
        saved[name] = content
  if (directory / TEMPLATE).is_file():
    content = read_bytes(directory / TEMPLATE)
    text = content.decode("utf-8", "replace")
    before = reward_template.original(text)
    saved[TEMPLATE] = content if before == text else before.encode()
  return Settings(str(directory), files, saved)


def parsed(content: bytes, path: pathlib.Path) -> Mapping[str, Any]:
  """Returns the JSON object of a file.

  Raises:
    UserError: it is something else.
  """
  try:
    value = json.loads(content.decode("utf-8-sig"))
    if not isinstance(value, dict):
      raise ValueError("it is no table")
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"is not a JSON table ({short(error)})",
      file=str(path),
      fix="give the file as the model's makers published it",
      code="bad_json",
    ) from error
  return value


def read_bytes(path: pathlib.Path) -> bytes:
  """Returns a file's content.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(
      f"cannot be read: {error.strerror}",
      file=str(path),
      fix=FIX,
      code="unreadable",
    ) from error


def short(error: Exception) -> str:
  """Returns an exception's text in one line."""
  return " ".join(str(error).split())[:100] or type(error).__name__


FIX = (
  "give a sentencepiece .model, a tokenizer.json, or a directory with"
  " encoder.json and vocab.bpe"
)
