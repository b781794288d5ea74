"""Trains a sentencepiece model on a text."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece
from absl import logging

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import settings
from instructgpt_jax.data.tokenizers.base import Tokenizer
from instructgpt_jax.data.tokenizers.sentencepiece_model import (
  NEWLINE_WORD,
  SentencePiece,
)
from instructgpt_jax.errors import UserError

MAX_TRAINING_CHARS = 20_000_000
_MAX_SENTENCE_BYTES = 4000


def _sentences(texts: Iterable[str], kind: str) -> list[str]:
  """Lines of at most the length that sentencepiece reads, evenly thinned."""
  lines = []
  for text in texts:
    for line in text.split("\n"):
      while len(line) > _MAX_SENTENCE_BYTES // 4:
        cut = line.rfind(" ", 1, _MAX_SENTENCE_BYTES // 4)
        cut = cut if cut > 0 else _MAX_SENTENCE_BYTES // 4
        lines.append(line[:cut])
        line = line[cut:]
      if line.strip():
        lines.append(line)
  total = sum(map(len, lines))
  if total > MAX_TRAINING_CHARS and kind != "word":
    step = -(-total // MAX_TRAINING_CHARS)
    lines = lines[::step]
  return lines


def _train(lines: Sequence[str], kind: str, vocab_size: int) -> bytes:
  word = kind == "word"
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    model_type=kind,
    vocab_size=vocab_size,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    normalization_rule_name="identity",
    remove_extra_whitespaces=word,
    add_dummy_prefix=word,
    byte_fallback=not word,
    split_digits=not word,
    hard_vocab_limit=kind == "bpe",
    character_coverage=1.0 if word else 0.9995,
    user_defined_symbols=["▁" + NEWLINE_WORD] if word else ["\n", "\n\n"],
    num_threads=1,
    minloglevel=2,
    input_sentence_size=0,
    shuffle_input_sentence=False,
  )
  return model.getvalue()


def _largest_size(error: Exception, size: int) -> int:
  """Returns the largest vocabulary size that SentencePiece's error allows.

  Raises:
    UserError: the size is too small for the text, or something else is wrong.
  """
  text = str(error)
  if too_small := re.search(
    r"smaller than required_chars\. \d+ vs (\d+)", text
  ):
    required = int(too_small.group(1))
    raise UserError(
      f"{size} is too small for this text: its characters and the 256 bytes"
      f" need {required}",
      field="tokenizer.vocab_size",
      fix=f"give at least {required + 64}",
      code="vocabulary_too_small",
    ) from error
  if too_large := re.search(r"value <= (\d+)", text):
    return int(too_large.group(1))
  raise UserError(
    f"sentencepiece cannot train on this text ({settings.short(error)})",
    field="tokenizer.kind",
    fix="give more text, or a trained tokenizer with --tokenizer.path",
    code="tokenizer_training",
  ) from error


def train_tokenizer(
  texts: Iterable[str],
  tokenizer_config: configs.Tokenizer,
  out_dir: str | pathlib.Path | None = None,
) -> Tokenizer:
  """Trains a sentencepiece model; the same texts always give the same model.

  `bpe` and `unigram` keep every character: no normalisation, bytes for what is
  rare, one token for a newline and one for two. `word` splits at spaces, so
  runs of spaces and a leading one are lost, a newline is a word of its own, and
  a word outside the vocabulary is unknown.

  Args:
    texts: the corpus; at most about 20 M characters of it, evenly spread, are
      used (all of it for `word`).
    tokenizer_config: size and algorithm. A size that the corpus cannot fill is
      lowered, with a log line.
    out_dir: where to save it, if anywhere.
  """
  kind, size = tokenizer_config.kind, tokenizer_config.vocab_size
  lines = _sentences(texts, kind)
  if not lines:
    raise UserError(
      "there is no text to train a tokenizer on",
      field="data.pretraining",
      fix="give text, or a trained tokenizer with --tokenizer.path",
      code="no_text",
    )
  try:
    proto = _train(lines, kind, size)
  except Exception as e:
    proto = _train(lines, kind, _largest_size(e, size))
  result = SentencePiece(proto)
  if result.vocab_size < size:
    logging.info(
      "The text fills a vocabulary of %d tokens only, not %d.",
      result.vocab_size,
      size,
    )
  if out_dir is not None:
    result.save(out_dir)
  return result
