"""GPT-2's vocabulary: encoder.json with vocab.bpe, or tiktoken's ranks."""

from __future__ import annotations

import base64
import json
import pathlib

import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers

from instructgpt_jax.data.tokenizers import classes, hugging_face, settings
from instructgpt_jax.data.tokenizers.hugging_face import HuggingFace
from instructgpt_jax.data.tokenizers.special_tokens import TOKENIZER_CONFIG
from instructgpt_jax.errors import UserError

END = "<|endoftext|>"
# Classes of `transformers` that split texts as GPT-2 does.
_CLASSES = (classes.GPT2, "CodeGenTokenizer", classes.AS_IS, "")


def build(
  vocab: dict[str, int],
  merges: list[tuple[str, str]],
  path: pathlib.Path,
) -> HuggingFace:
  """Builds a byte-level BPE tokenizer like GPT-2's.

  Args:
    vocab: token → id.
    merges: pairs of tokens, the first to be merged first.
    path: the vocabulary's file.
  """
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocab, merges=merges)
  )
  values = settings.read(path.parent).config
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=bool(values.get("add_prefix_space")), use_regex=True
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  if END in vocab:
    tokenizer.add_special_tokens([END])
  return hugging_face.build(json.loads(tokenizer.to_str()), path)


def load(directory: pathlib.Path) -> HuggingFace:
  """Loads encoder.json with vocab.bpe, or vocab.json with merges.txt.

  Raises:
    UserError: they are not GPT-2's, or those of a class that splits texts
      otherwise.
  """
  names = ("encoder.json", "vocab.bpe")
  if not (directory / names[0]).exists():
    names = ("vocab.json", "merges.txt")
  kind = classes.of(settings.read(directory).files)
  if kind not in _CLASSES:
    raise UserError(
      f"is of class {kind}, which splits texts otherwise than {names[0]} and"
      f" {names[1]} say",
      file=f"{directory}/{TOKENIZER_CONFIG}",
      field="tokenizer_class",
      fix="copy the model's tokenizer.json there",
      code="unknown_tokenizer_class",
    )
  encoder, bpe = (settings.read_bytes(directory / n) for n in names)
  try:
    vocab = json.loads(encoder)
    merges = [
      (a, b)
      for line in bpe.decode("utf-8").split("\n")
      if line and not line.startswith("#version")
      for a, b in [line.split(" ")]
    ]
    result = build(vocab, merges, directory / names[0])
  except UserError:
    raise
  except Exception as e:
    raise UserError(
      f"{names[0]} and {names[1]} are not a GPT-2 vocabulary"
      f" ({settings.short(e)})",
      file=str(directory),
      fix=settings.FIX,
      code="bad_tokenizer",
    ) from e
  result.files = {"encoder.json": encoder, "vocab.bpe": bpe, **result.files}
  return result


def load_tiktoken(path: pathlib.Path) -> HuggingFace:
  """Loads GPT-2's ranks, one `base64 rank` a line.

  Raises:
    UserError: they are not GPT-2's.
  """
  content = settings.read_bytes(path)
  try:
    ranks = {}
    for line in content.splitlines():
      if line.strip():
        token, rank = line.split()
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    letter = byte_letters()
    vocab = {"".join(letter[b] for b in t): r for t, r in ranks.items()}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
      if len(token) > 1:
        left, right = _last_merge(token, rank, ranks)
        merges.append(
          (
            "".join(letter[b] for b in left),
            "".join(letter[b] for b in right),
          )
        )
    if END not in vocab:
      vocab[END] = max(vocab.values()) + 1
    result = build(vocab, merges, path)
  except UserError:
    raise
  except Exception as e:
    raise UserError(
      f"is not a tiktoken vocabulary ({settings.short(e)})",
      file=str(path),
      fix=settings.FIX,
      code="bad_tokenizer",
    ) from e
  result.files = {"tokenizer.tiktoken": content, **result.files}
  return result


def byte_letters() -> dict[int, str]:
  """Returns byte → the printable character that GPT-2's files use for it."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = {b: chr(b) for b in printable}
  for b in range(256):
    letters.setdefault(b, chr(256 + len(letters) - len(printable)))
  return letters


def _last_merge(
  token: bytes, rank: int, ranks: dict[bytes, int]
) -> list[bytes]:
  """Returns the two parts of a token that BPE over lower ranks leaves."""
  parts = [token[i : i + 1] for i in range(len(token))]
  while len(parts) > 2:
    best, at = min(
      (ranks.get(parts[i] + parts[i + 1], rank), i)
      for i in range(len(parts) - 1)
    )
    if best >= rank:
      break
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  if len(parts) != 2:
    raise ValueError(f"no merge makes {token!r}")
  return parts
