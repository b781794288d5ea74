"""Tokenizers keep text, keep pad and end-of-text apart, and save exactly."""

import json
import random

import pytest
import tokenizers

from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers as tok
from instructgpt_jax.data.tokenizers.gpt2 import byte_letters
from instructgpt_jax.data.tokenizers.sentencepiece_model import CHUNK
from instructgpt_jax.errors import UserError

TEXTS = [
  "The quick brown fox jumps over the lazy dog.\n\nIt did so 12 times.",
  "A second text, with a comma; and the dog again.\nThe fox, too.",
] * 20
TRICKY = [
  "",
  " leading",
  "trailing \n",
  "two  spaces\t\ttab\n\n\nthree newlines",
  "日本語 and é and 🙂\r\n",
  "<pad></s><|endoftext|><unk>",
  "\x00 a null",
]


def trained(kind, size=500, texts=TEXTS):
  return tok.train_tokenizer(
    texts, configs.Tokenizer(kind=kind, vocab_size=size)
  )


def gpt2_directory(directory):
  """Writes small GPT-2 files: 256 byte letters and a few merges."""
  letters = byte_letters()
  vocab = {letters[b]: b for b in range(256)}
  merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
  for a, b in merges:
    vocab[a + b] = len(vocab)
  vocab["<|endoftext|>"] = len(vocab)
  directory.mkdir(exist_ok=True)
  (directory / "encoder.json").write_text(json.dumps(vocab))
  lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
  (directory / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
  return directory


def hugging_face_file(path):
  gpt2 = tok.load_tokenizer(gpt2_directory(path.parent / "parts"))
  inner = gpt2._tokenizer
  inner.add_special_tokens(
    [
      tokenizers.AddedToken("</s>", special=True),
      tokenizers.AddedToken("<pad>", special=True),
    ]
  )
  inner.save(str(path))
  return path


@pytest.fixture(params=["bpe", "unigram", "gpt2", "tokenizer.json"])
def lossless(request, tmp_path):
  if request.param == "gpt2":
    return tok.load_tokenizer(gpt2_directory(tmp_path / "gpt2"))
  if request.param == "tokenizer.json":
    return tok.load_tokenizer(hugging_face_file(tmp_path / "tokenizer.json"))
  return trained(request.param)


def test_pad_is_never_end_of_text(lossless):
  """INVARIANTS 8: pad ≠ eos, and no text encodes to either."""
  assert lossless.pad_id != lossless.eos_id
  for i in (lossless.pad_id, lossless.eos_id):
    assert 0 <= i < lossless.vocab_size
  for text in [*TEXTS[:2], *TRICKY]:
    ids = lossless.encode(text)
    assert not {lossless.pad_id, lossless.eos_id} & set(ids)
    assert all(0 <= i < lossless.vocab_size for i in ids)


@pytest.mark.parametrize("text", [TEXTS[0], *TRICKY])
def test_round_trip(lossless, text):
  ids = lossless.encode(text)
  assert lossless.decode(ids) == text
  special = [lossless.pad_id, *ids, lossless.eos_id, lossless.pad_id]
  assert lossless.decode(special) == text


def test_save_and_load(lossless, tmp_path):
  lossless.save(tmp_path / "saved" / "tokenizer")
  for directory in (tmp_path / "saved" / "tokenizer", tmp_path / "saved"):
    again = tok.load_tokenizer(directory)
    assert again.vocab_size == lossless.vocab_size
    assert (again.pad_id, again.eos_id) == (lossless.pad_id, lossless.eos_id)
    assert again.encode_batch(TRICKY) == lossless.encode_batch(TRICKY)


def test_stream_decoder_gives_the_whole_text(lossless):
  for text in [TEXTS[0], *TRICKY]:
    stream = tok.StreamDecoder(lossless)
    ids = lossless.encode(text)
    pieces = [stream.push(i) for i in ids]
    assert not any("\ufffd" in p for p in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_stream_decoder_does_not_stall_on_broken_bytes(tmp_path):
  tokenizer = tok.load_tokenizer(gpt2_directory(tmp_path / "gpt2"))
  broken = tokenizer.encode("é")[:1]
  stream = tok.StreamDecoder(tokenizer)
  out = [stream.push(broken[0]) for _ in range(20)]
  assert any(out)


def test_long_and_short_texts_encode_alike():
  """Splitting long texts for speed must not change a token."""
  tokenizer = trained("bpe", 700)
  rng = random.Random(0)
  words = " ".join(TEXTS).split(" ")
  text = "".join(
    rng.choice(words) + rng.choice([" ", "\n", "\n\n", "\n\n\n", "\n "])
    for _ in range(3000)
  )
  assert len(text) > 5 * CHUNK
  whole = tokenizer._sp.encode(text)
  assert tokenizer.encode(text) == whole
  assert tokenizer.encode_batch(["the", text, ""])[1] == whole


def test_training_is_deterministic():
  for kind in ("bpe", "unigram", "word"):
    assert trained(kind).files == trained(kind).files


def test_newlines_are_tokens():
  tokenizer = trained("bpe")
  assert len(tokenizer.encode("\n")) == len(tokenizer.encode("\n\n")) == 1


def test_word_tokenizer():
  tokenizer = trained("word", 100)
  one = tokenizer.encode("fox")
  assert len(one) == 1
  assert tokenizer.encode(" fox") == one, "a reply is encoded as in a text"
  text = "the lazy dog.\nThe fox,"
  assert tokenizer.decode(tokenizer.encode(text)) == text
  both = tokenizer.encode("the lazy fox")
  assert both == tokenizer.encode("the lazy") + tokenizer.encode(" fox")
  assert tokenizer.pad_id != tokenizer.eos_id


def test_vocabulary_larger_than_the_text_is_lowered():
  for kind in ("bpe", "unigram", "word"):
    tokenizer = trained(kind, 30_000)
    assert tokenizer.vocab_size < 2000
    assert tokenizer.encode("the fox")


def test_error_for_a_small_vocabulary_names_the_minimum():
  with pytest.raises(UserError) as e:
    trained("bpe", 64)
  assert e.value.field == "tokenizer.vocab_size"
  size = int(e.value.fix.split()[-1])
  assert trained("bpe", size).encode("fox")


def test_no_text_to_train_on():
  with pytest.raises(UserError, match="no text"):
    trained("bpe", 500, ["", "\n"])


def test_model_with_a_leading_space_encodes_replies_as_in_a_text(tmp_path):
  """Llama-like models add the space that a reply already has."""
  import io

  import sentencepiece

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_writer=out,
    vocab_size=60,
    model_type="bpe",
    remove_extra_whitespaces=False,
    minloglevel=2,
    hard_vocab_limit=False,
  )
  path = tmp_path / "llama.model"
  path.write_bytes(out.getvalue())
  tokenizer = tok.load_tokenizer(path)
  # That model has no padding: one entry is added.
  assert tokenizer.pad_id == tokenizer.vocab_size - 1 != tokenizer.eos_id
  assert tokenizer.encode(" fox") == tokenizer.encode("fox")
  joined = tokenizer.encode("the") + tokenizer.encode(" fox")
  assert joined == tokenizer.encode("the fox")


def test_padding_that_is_end_of_text_is_replaced(tmp_path):
  """Many GPT-2 set-ups call end-of-text their padding."""
  path = hugging_face_file(tmp_path / "tokenizer.json")
  settings = {"eos_token": "</s>", "pad_token": {"content": "</s>"}}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  tokenizer = tok.load_tokenizer(path)
  assert tokenizer.eos_id == tokenizer._tokenizer.token_to_id("</s>")
  assert tokenizer.pad_id == tokenizer.vocab_size - 1 == tokenizer.base_size
  tokenizer.save(tmp_path / "saved")
  again = tok.load_tokenizer(tmp_path / "saved")
  assert (again.eos_id, again.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)


@pytest.mark.parametrize(
  "name, content",
  [
    ("no.model", b"this is no model"),
    ("empty.model", b""),
    ("tokenizer.json", b'{"model": 3}'),
    ("tokenizer.json", b"\xff\xfe"),
    ("encoder.json", b"[1, 2]"),
    ("ranks.tiktoken", b"??? x"),
    ("notes.docx", b"hello"),
  ],
)
def test_unknown_tokenizer_files(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as e:
    tok.load_tokenizer(tmp_path / name)
  assert str(tmp_path) in str(e.value)
  assert "fix" in str(e.value) and str(e.value).count("\n") <= 2


def test_missing_tokenizer_names_the_nearest(tmp_path):
  (tmp_path / "spm.model").write_bytes(b"x")
  with pytest.raises(UserError, match=r"spm\.model"):
    tok.load_tokenizer(tmp_path / "spn.model")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no tokenizer"):
    tok.load_tokenizer(tmp_path / "empty")
