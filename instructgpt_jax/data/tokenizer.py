"""Tokenizers: sentencepiece, GPT-2's BPE files, Hugging Face tokenizer.json.

Every tokenizer has a padding id and an end-of-text id, and they always differ:
what the vocabulary lacks is appended to it, so `vocab_size` may be one or two
larger than the file's. Text never encodes to either of them.
"""

from __future__ import annotations

import base64
import difflib
import functools
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
from absl import logging

from instructgpt_jax import config
from instructgpt_jax.data.chat_template import ChatTemplate
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError

FIX = (
  "give a sentencepiece .model, a tokenizer.json, or a folder with"
  " encoder.json and vocab.bpe"
)
# A word vocabulary has no place for a bare newline: it is one more word.
NEWLINE_WORD = "<newline>"
MAX_TRAINING_CHARS = 20_000_000
_MAX_SENTENCE_BYTES = 4000
_CHUNK = 1000  # characters
_BOUNDARY = re.compile(r"[^\n]\n(?=[^\n])")
_END_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
# What a tokenizer.json needs to be whole for other programs.
_BESIDE = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
)
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_pad|>")


class Tokenizer:
  """Text to ids and back.

  Attributes:
    vocab_size: number of ids, with those that were appended.
    pad_id: fills rows up; no text encodes to it.
    eos_id: ends a document or a reply; no text encodes to it.
    files: file name -> bytes, all that `save` has to write.
    begin: ids that every text begins with, such as Llama's <s>.
    template: how conversations are written; None where nothing says so.
  """

  begin: tuple[int, ...] = ()
  template: ChatTemplate | None = None

  def __init__(self, base_size: int, pad_id: int, eos_id: int):
    size = base_size
    if not 0 <= eos_id < base_size:
      eos_id, size = size, size + 1
    if not 0 <= pad_id < base_size or pad_id == eos_id:
      pad_id, size = size, size + 1
    self.base_size, self.vocab_size = base_size, size
    self.pad_id, self.eos_id = pad_id, eos_id
    self.files: dict[str, bytes] = {}

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any special token."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts in one call; much faster than a loop."""
    raise NotImplementedError

  def encode_turns(self, turns: Sequence[Turn]) -> list[int]:
    """The ids of a conversation by the template, up to the reply."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """The text of some ids; padding and end-of-text are left out."""
    kept = [
      i
      for i in map(int, ids)
      if 0 <= i < self.base_size and i not in (self.pad_id, self.eos_id)
    ]
    return self._decode(kept)

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes files from which `load_tokenizer(directory)` makes this again."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (directory / name).write_bytes(content)


class SentencePiece(Tokenizer):
  """A sentencepiece model.

  Models that put a space in front of every text (Llama's, and ours of kind
  `word`) lose one leading space: a reply " yes" and "yes" are the same there,
  which is what makes a reply encode as it would in the middle of a text.
  """

  def __init__(self, proto: bytes):
    self._sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
    super().__init__(
      self._sp.vocab_size(), self._sp.pad_id(), self._sp.eos_id()
    )
    pieces = self._sp.encode("a", out_type=str)
    self._adds_space = pieces[0].startswith("▁")
    self._is_word = self._sp.piece_to_id("▁" + NEWLINE_WORD) not in (
      self._sp.unk_id(),
      -1,
    )
    unknown = self._sp.unk_id()
    self._newline_is_piece = not self._adds_space and all(
      self._sp.piece_to_id(p) != unknown for p in ("\n", "\n\n")
    )
    self.unk_id = unknown
    self.files = {"tokenizer.model": proto}

  @property
  def pieces(self) -> list[tuple[str, float]]:
    """Each id's piece and score."""
    ids = range(self.base_size)
    return [(self._sp.id_to_piece(i), self._sp.get_score(i)) for i in ids]

  @property
  def is_ours(self) -> bool:
    """Whether `train_tokenizer` made it: no text is normalised."""
    return self._is_word or self._newline_is_piece

  @property
  def kind(self) -> str:
    """The algorithm of a model of ours: as in `config.Tokenizer`."""
    if self._is_word:
      return "word"
    # A BPE piece's score is minus its rank.
    scores = [score for _, score in self.pieces]
    return "bpe" if all(x == round(x) for x in scores) else "unigram"

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    if self._newline_is_piece and any(len(t) > 2 * _CHUNK for t in texts):
      return self._encode_long(texts)
    if self._is_word:
      texts = [t.replace("\n", f" {NEWLINE_WORD} ") for t in texts]
    elif self._adds_space:
      texts = [t[1:] if t.startswith(" ") else t for t in texts]
    return self._sp.encode(list(texts), out_type=int, num_threads=1)

  def _encode_long(self, texts: Sequence[str]) -> list[list[int]]:
    """The same ids, from pieces that end where no token can cross.

    Nothing merges with a newline in our own models, and encoding short pieces
    is twice as fast as encoding a book.
    """
    parts: list[str] = []
    counts = []
    for text in texts:
      before, start = len(parts), 0
      while len(text) - start > _CHUNK:
        cut = _BOUNDARY.search(text, start + _CHUNK)
        if cut is None:
          break
        parts.append(text[start : cut.end()])
        start = cut.end()
      parts.append(text[start:])
      counts.append(len(parts) - before)
    encoded = iter(self._sp.encode(parts, out_type=int, num_threads=1))
    return [
      list(itertools.chain.from_iterable(itertools.islice(encoded, n)))
      for n in counts
    ]

  def _decode(self, ids: list[int]) -> str:
    text = self._sp.decode(ids)
    if self._is_word:
      text = re.sub(f" ?{re.escape(NEWLINE_WORD)} ?", "\n", text)
    return text


class HuggingFace(Tokenizer):
  """A `tokenizers` model, from tokenizer.json or from GPT-2's two files."""

  def __init__(
    self, tokenizer: tokenizers.Tokenizer, eos: str = "", pad: str = ""
  ):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A user's "<|endoftext|>" is text, never the token that ends a reply.
    tokenizer.encode_special_tokens = True
    self._tokenizer = tokenizer
    vocab = tokenizer.get_vocab(with_added_tokens=True)

    def find(names):
      return next((vocab[n] for n in names if n in vocab), -1)

    super().__init__(
      max(vocab.values()) + 1,
      find((pad, *_PAD_NAMES)),
      find((eos, *_END_NAMES)),
    )
    self.begin = self._beginning()

  def _beginning(self) -> tuple[int, ...]:
    """What the tokenizer puts ahead of a text."""
    whole, alone = (
      self._tokenizer.encode("a", add_special_tokens=special).ids
      for special in (True, False)
    )
    ahead = len(whole) - len(alone)
    found = (i for i in range(ahead + 1) if whole[i:][: len(alone)] == alone)
    return tuple(whole[: next(found, 0)])

  @property
  def rust(self) -> tokenizers.Tokenizer:
    """What it is made of."""
    return self._tokenizer

  @functools.cached_property
  def _marking(self) -> tokenizers.Tokenizer:
    """The same, but a special token's text is that token."""
    found = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    found.encode_special_tokens = False
    return found

  @functools.cached_property
  def _special(self) -> re.Pattern[str]:
    names = [
      re.escape(token.content)
      for token in self._tokenizer.get_added_tokens_decoder().values()
      if token.special
    ]
    return re.compile("|".join(names) or r"(?!)")

  def encode_turns(self, turns: Sequence[Turn]) -> list[int]:
    """The ids of a conversation; special tokens are the template's alone.

    What a user wrote like one is kept apart until the template is filled in,
    and is then encoded as text.
    """
    assert self.template is not None
    written: list[str] = []

    def hide(match: re.Match[str]) -> str:
      written.append(match.group())
      return f"\ue000{len(written) - 1}\ue001"

    hidden = [
      Turn(t.role, self._special.sub(hide, t.text) if t.text else t.text)
      for t in turns
    ]
    text = self.template.render(hidden)
    if not written:
      return self._marking.encode(text, add_special_tokens=False).ids
    found: list[int] = []
    for i, part in enumerate(re.split("\ue000(\\d+)\ue001", text)):
      if i % 2:
        found += self.encode(written[int(part)])
      elif part:
        found += self._marking.encode(part, add_special_tokens=False).ids
    return found

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    found = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    drop = {self.pad_id, self.eos_id}
    return [
      e.ids if drop.isdisjoint(e.ids) else [i for i in e.ids if i not in drop]
      for e in found
    ]

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=True)


def _gpt2(vocab: dict[str, int], merges: list[tuple[str, str]]) -> HuggingFace:
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocab, merges=merges)
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=True
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  return HuggingFace(tokenizer, eos="<|endoftext|>")


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as e:
    raise UserError(
      f"cannot be read: {e.strerror}", file=str(path), fix=FIX
    ) from e


def _load_gpt2(folder: pathlib.Path) -> Tokenizer:
  names = ("encoder.json", "vocab.bpe")
  if not (folder / names[0]).exists():
    names = ("vocab.json", "merges.txt")
  encoder, bpe = (_read(folder / n) for n in names)
  try:
    vocab = json.loads(encoder)
    merges = [
      (a, b)
      for line in bpe.decode("utf-8").split("\n")
      if line and not line.startswith("#version")
      for a, b in [line.split(" ")]
    ]
    result = _gpt2(vocab, merges)
  except Exception as e:
    raise UserError(
      f"{names[0]} and {names[1]} are not a GPT-2 vocabulary ({_short(e)})",
      file=str(folder),
      fix=FIX,
    ) from e
  result.files = {"encoder.json": encoder, "vocab.bpe": bpe}
  return result


def _load_json(path: pathlib.Path) -> Tokenizer:
  content = _read(path)
  special = {}
  settings = path.parent / "tokenizer_config.json"
  try:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    if settings.exists():
      special = json.loads(_read(settings))
  except Exception as e:
    raise UserError(
      f"is not a Hugging Face tokenizer ({_short(e)})",
      file=str(path),
      fix=FIX,
    ) from e
  names = {}
  for key, value in special.items() if isinstance(special, dict) else ():
    value = value.get("content") if isinstance(value, dict) else value
    if isinstance(value, str) and key.endswith("_token"):
      names[key] = value
  result = HuggingFace(
    tokenizer, names.get("eos_token", ""), names.get("pad_token", "")
  )
  result.files = {"tokenizer.json": content}
  for name in _BESIDE:
    if (path.parent / name).exists():
      result.files[name] = _read(path.parent / name)
  text = special.get("chat_template") if isinstance(special, dict) else None
  if "chat_template.jinja" in result.files:
    text = result.files["chat_template.jinja"].decode("utf-8", "replace")
  if isinstance(text, list):  # several, of which one is for talking
    text = {t["name"]: t["template"] for t in text}.get("default")
  if text:
    result.template = ChatTemplate(text, names, str(path.parent))
  return result


def _load_sentencepiece(path: pathlib.Path) -> Tokenizer:
  content = _read(path)
  try:
    if not content:
      raise ValueError("empty file")
    return SentencePiece(content)
  except Exception as e:
    raise UserError(
      f"is not a sentencepiece model ({_short(e)})",
      file=str(path),
      fix=FIX,
    ) from e


def _load_tiktoken(path: pathlib.Path) -> Tokenizer:
  """GPT-2's ranks, one `base64 rank` a line, turned into vocab and merges."""
  content = _read(path)
  try:
    ranks = {}
    for line in content.splitlines():
      if line.strip():
        token, rank = line.split()
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    letter = _byte_letters()
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
    if "<|endoftext|>" not in vocab:
      vocab["<|endoftext|>"] = max(vocab.values()) + 1
    result = _gpt2(vocab, merges)
  except Exception as e:
    raise UserError(
      f"is not a tiktoken vocabulary ({_short(e)})",
      file=str(path),
      fix=FIX,
    ) from e
  result.files = {"tokenizer.tiktoken": content}
  return result


def _byte_letters() -> dict[int, str]:
  """GPT-2's printable stand-in for each byte."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = {b: chr(b) for b in printable}
  for b in range(256):
    letters.setdefault(b, chr(256 + len(letters) - len(printable)))
  return letters


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]):
  """The two parts that BPE over lower ranks leaves of a token."""
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


def _short(e: Exception) -> str:
  return " ".join(str(e).split())[:100] or type(e).__name__


def _near(path: pathlib.Path) -> str:
  parent = path.parent
  if not parent.is_dir():
    return ""
  names = [p.name for p in parent.iterdir()]
  found = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
  return f"did you mean {found[0]!r}? " if found else ""


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
  """Loads any of the known kinds of tokenizer.

  Args:
    path: a sentencepiece .model, a tokenizer.json, a .tiktoken file, a folder
      with encoder.json and vocab.bpe, or a folder that `save` wrote (or that
      has such a folder called `tokenizer` in it).
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise UserError("no such tokenizer", file=str(path), fix=_near(path) + FIX)
  if path.is_dir():
    for folder in (path, path / "tokenizer"):
      for name, load in (
        ("tokenizer.json", _load_json),
        ("tokenizer.model", _load_sentencepiece),
        ("tokenizer.tiktoken", _load_tiktoken),
      ):
        if (folder / name).exists():
          return load(folder / name)
      if (folder / "encoder.json").exists() or (folder / "vocab.json").exists():
        return _load_gpt2(folder)
    for pattern, load in (
      ("*.model*", _load_sentencepiece),
      ("*tokenizer*.json", _load_json),
      ("*.tiktoken", _load_tiktoken),
    ):
      found = sorted(p for p in path.glob(pattern) if p.is_file())
      if len(found) == 1:
        return load(found[0])
    raise UserError("holds no tokenizer file", file=str(path), fix=FIX)
  if path.name in ("encoder.json", "vocab.bpe", "vocab.json", "merges.txt"):
    return _load_gpt2(path.parent)
  if path.suffix == ".json":
    return _load_json(path)
  if path.suffix == ".tiktoken":
    return _load_tiktoken(path)
  if ".model" in path.suffixes:
    return _load_sentencepiece(path)
  raise UserError(
    "is not a known kind of tokenizer file", file=str(path), fix=FIX
  )


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


def train_tokenizer(
  texts: Iterable[str],
  tokenizer_config: config.Tokenizer,
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
    )
  word = kind == "word"
  options: dict[str, Any] = dict(
    model_type=kind,
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

  def train(vocab_size):
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=proto,
      vocab_size=vocab_size,
      **options,
    )
    return proto.getvalue()

  try:
    proto = train(size)
  except Exception as e:
    text = str(e)
    high = re.search(r"value <= (\d+)", text)
    low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", text)
    if low:
      raise UserError(
        f"{size} is too small for this text: its characters and the 256 bytes"
        f" need {low.group(1)}",
        field="tokenizer.vocab_size",
        fix=f"give at least {int(low.group(1)) + 64}",
      ) from e
    if not high:
      raise UserError(
        f"sentencepiece cannot train on this text ({_short(e)})",
        field="tokenizer.kind",
        fix="give more text, or a trained tokenizer with --tokenizer.path",
      ) from e
    proto = train(int(high.group(1)))
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


class StreamDecoder:
  """Decodes a reply token by token, for a terminal.

  A character that is spread over several tokens appears once it is whole.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    self._start = self._read = 0

  def push(self, token: int) -> str:
    """The text that one more token adds; "" while a character is not whole."""
    self._ids.append(int(token))
    before = self._tokenizer.decode(self._ids[self._start : self._read])
    after = self._tokenizer.decode(self._ids[self._start :])
    # Bytes that are no UTF-8 would hold the stream up for ever.
    waiting = after.endswith("\ufffd") and len(self._ids) - self._read < 8
    if waiting or len(after) <= len(before):
      return ""
    self._start, self._read = self._read, len(self._ids)
    return after[len(before) :]

  def flush(self) -> str:
    """What is left at the end, with a mark for a broken character."""
    before = self._tokenizer.decode(self._ids[self._start : self._read])
    after = self._tokenizer.decode(self._ids[self._start :])
    self._start = self._read = len(self._ids)
    return after[len(before) :]
