"""Which tokens begin, end and pad a text, by all files of a directory.

Pure: files come as parsed JSON. The precedence, highest first:

1. `eos_token`, `bos_token` and `pad_token` of tokenizer_config.json and
   special_tokens_map.json, which must agree;
2. ids of generation_config.json and config.json that are added tokens; where
   both have some, those that both have;
3. what a sentencepiece model says itself;
4. names such as </s> in the vocabulary;
5. ids of generation_config.json and config.json that are tokens in brackets.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructgpt_jax.errors import UserError

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
GENERATION = "generation_config.json"
MODEL = "config.json"
# Our key of tokenizer_config.json: ids that end a reply, beside eos_token.
STOP_KEY = "instructgpt_jax_stop_token_ids"

_EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
# Names that look like a mark, and not like a byte of a sentencepiece model.
_MARK = re.compile(r"(?!<0x)<.+>|\[.+\]")
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_pad|>")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokens and ids of the tokenizer's file.

  Attributes:
    file: its name, for errors.
    ids: token → id of all tokens, added ones included.
    added: ids of tokens that are not made of text, such as control tokens.
    eos_id: by the file itself; -1 where it does not say.
    bos_id: likewise.
    pad_id: likewise.
    unk_id: stands for unknown text; -1 for none.
  """

  file: str
  ids: Mapping[str, int]
  added: frozenset[int]
  eos_id: int = -1
  bos_id: int = -1
  pad_id: int = -1
  unk_id: int = -1


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """The special tokens of a directory; an id of -1 is none.

  Attributes:
    eos_id: ends a document, and a reply unless the chat template ends it
      otherwise.
    bos_id: begins a text where the tokenizer begins texts.
    pad_id: padding; never one of the other two.
    stop_ids: more ids at which generation stops.
    names: `bos_token` and so on → token, of the files that name tokens.
  """

  eos_id: int
  bos_id: int
  pad_id: int
  stop_ids: tuple[int, ...]
  names: Mapping[str, str]


def token_text(value: Any) -> str:
  """Returns the text of a token, given as a string or object; "" for none."""
  if isinstance(value, Mapping):
    value = value.get("content")
  return value if isinstance(value, str) else ""


def named_tokens(
  files: Mapping[str, Mapping[str, Any]], directory: str
) -> dict[str, str]:
  """Returns `eos_token` and so on → token, of both files that name tokens.

  Raises:
    UserError: they name different tokens.
  """
  names: dict[str, str] = {}
  for file in (TOKENIZER_CONFIG, SPECIAL_MAP):
    for key, value in files.get(file, {}).items():
      text = token_text(value)
      if not key.endswith("_token") or not text:
        continue
      if names.setdefault(key, text) != text:
        raise UserError(
          f"is {names[key]!r}, but {text!r} in {SPECIAL_MAP}",
          file=f"{directory}/{TOKENIZER_CONFIG}",
          field=key,
          fix=f"make {TOKENIZER_CONFIG} and {SPECIAL_MAP} agree",
          code="special_token_conflict",
        )
  return names


def reconcile(
  files: Mapping[str, Mapping[str, Any]],
  vocabulary: Vocabulary,
  directory: str,
) -> SpecialTokens:
  """Decides the special tokens from all files of a directory.

  Args:
    files: file name → its parsed content, of the files that there are.
    vocabulary: what the tokenizer's file says.
    directory: named in errors.

  Raises:
    UserError: two files contradict each other; both are named.
  """
  names = named_tokens(files, directory)
  for key in ("eos_token", "bos_token"):
    if key in names and names[key] not in vocabulary.ids:
      _refuse_unknown(key, names[key], files, vocabulary, directory)
  if len(names.get("eos_token", "")) == 1:
    _refuse_letter(names["eos_token"], directory)
  eos_id = vocabulary.ids.get(names.get("eos_token", ""), -1)
  if eos_id < 0:
    eos_id = _unnamed_eos(files, vocabulary, directory)
  bos_id = vocabulary.ids.get(names.get("bos_token", ""), vocabulary.bos_id)
  used = {eos_id, bos_id, vocabulary.unk_id}
  pad = names.get("pad_token", "")
  pad_id = -1
  if len(pad) > 1:  # one character stands for itself in texts
    pad_id = vocabulary.ids.get(pad, -1)
  if not pad:
    pad_id = _unnamed_pad(files, vocabulary, used)
  pad_id = -1 if pad_id in (eos_id, bos_id) else pad_id
  stop_ids = _more_stops(files, vocabulary, {*used, pad_id})
  return SpecialTokens(eos_id, bos_id, pad_id, stop_ids, names)


def _refuse_unknown(
  key: str,
  token: str,
  files: Mapping[str, Mapping[str, Any]],
  vocabulary: Vocabulary,
  directory: str,
) -> None:
  in_config = token_text(files.get(TOKENIZER_CONFIG, {}).get(key)) == token
  file = TOKENIZER_CONFIG if in_config else SPECIAL_MAP
  raise UserError(
    f"is {token!r}, which {vocabulary.file} does not have",
    file=f"{directory}/{file}",
    field=key,
    fix=f"name a token of {vocabulary.file}",
    code="special_token_unknown",
  )


def _refuse_letter(token: str, directory: str) -> None:
  raise UserError(
    f"is {token!r}, which texts contain",
    file=f"{directory}/{TOKENIZER_CONFIG}",
    field="eos_token",
    fix="name a token that is not a character of texts",
    code="special_token_is_text",
  )


def _ids(value: Any) -> list[int]:
  """Returns the token ids of a field with one id, a list, or null."""
  values = value if isinstance(value, list) else [value]
  return [i for i in values if type(i) is int and i >= 0]


def _unnamed_eos(
  files: Mapping[str, Mapping[str, Any]],
  vocabulary: Vocabulary,
  directory: str,
) -> int:
  """Returns the end-of-text id where no file names the token; -1 for none."""
  known = set(vocabulary.ids.values())
  marks = {i for name, i in vocabulary.ids.items() if _MARK.fullmatch(name)}
  written = {
    file: _ids(files.get(file, {}).get("eos_token_id"))
    for file in (GENERATION, MODEL)
  }
  never = {vocabulary.unk_id, vocabulary.bos_id, vocabulary.pad_id}
  added = {
    file: [i for i in ids if i in vocabulary.added and i not in never]
    for file, ids in written.items()
  }
  agreed = _agreed(added, directory)
  by_file = {vocabulary.eos_id} & known
  if agreed and by_file and not by_file & set(agreed):
    file = next(f for f in (GENERATION, MODEL) if added[f])
    raise UserError(
      f"is {agreed[0]}, but {vocabulary.file} ends texts with"
      f" {vocabulary.eos_id}",
      file=f"{directory}/{file}",
      field="eos_token_id",
      fix=f"name eos_token in {TOKENIZER_CONFIG}",
      code="special_token_conflict",
    )
  names = [vocabulary.ids[n] for n in _EOS_NAMES if n in vocabulary.ids]
  others = [i for ids in written.values() for i in ids if i in marks - never]
  ordered = [*by_file, *agreed, *names, *others]
  if not ordered and any(written.values()):
    file = next(f for f in (GENERATION, MODEL) if written[f])
    raise UserError(
      f"is {written[file][0]}, which is no token of {vocabulary.file} that can"
      " end a text",
      file=f"{directory}/{file}",
      field="eos_token_id",
      fix=f"name eos_token in {TOKENIZER_CONFIG}",
      code="special_token_unknown",
    )
  return ordered[0] if ordered else -1


def _agreed(ids: Mapping[str, Sequence[int]], directory: str) -> list[int]:
  """Returns the ids that generation_config.json and config.json share."""
  first, second = ids[GENERATION], ids[MODEL]
  if not first or not second:
    return [*first, *second]
  both = [i for i in first if i in second]
  if not both:
    raise UserError(
      f"is {first}, but {second} in {MODEL}",
      file=f"{directory}/{GENERATION}",
      field="eos_token_id",
      fix=f"name eos_token in {TOKENIZER_CONFIG}",
      code="special_token_conflict",
    )
  return both


def _unnamed_pad(
  files: Mapping[str, Mapping[str, Any]],
  vocabulary: Vocabulary,
  used: Iterable[int],
) -> int:
  """Returns the padding id where no file names the token; -1 for none."""
  ids = [vocabulary.pad_id]
  for file in (GENERATION, MODEL):
    written = _ids(files.get(file, {}).get("pad_token_id"))
    ids += [i for i in written if i in vocabulary.added]
  ids += [vocabulary.ids[n] for n in _PAD_NAMES if n in vocabulary.ids]
  return next((i for i in ids if i >= 0 and i not in used), -1)


def _more_stops(
  files: Mapping[str, Mapping[str, Any]],
  vocabulary: Vocabulary,
  never: set[int],
) -> tuple[int, ...]:
  """Returns stop ids of generation_config.json, or a list in config.json."""
  ids = _ids(files.get(TOKENIZER_CONFIG, {}).get(STOP_KEY))
  generation = files.get(GENERATION, {})
  if not generation.get("_from_model_config"):  # then it repeats config.json
    ids += _ids(generation.get("eos_token_id"))
  listed = files.get(MODEL, {}).get("eos_token_id")
  ids += _ids(listed) if isinstance(listed, list) else []
  chosen = (i for i in ids if i in vocabulary.added and i not in never)
  return tuple(dict.fromkeys(chosen))
