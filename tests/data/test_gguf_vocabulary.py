"""Tokenizers of GGUF files, compared with those that they were made of."""

import io

import pytest
import sentencepiece

from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.errors import UserError
from tests.interop import gguf_files, tiny

gguf = tiny.library("gguf")
CONTROL, USER_DEFINED = gguf_files.CONTROL, gguf_files.USER_DEFINED

TEXTS = [
  "Hello world, it's 12345 o'clock; I'LL pay $3.50!",
  "  two  spaces\tand a tab\n\nnew\r\nlines \n  indented   ",
  "def f(x):\n    return x ** 2  # 100%",
  "Ünïcödé, 日本語のテキスト, русский, العربية, हिन्दी",
  "🙂👩‍👩‍👧‍👦 emoji 🇫🇷",
  "e\u0301 \u00e9 ﬁ ½ ①",
  "a<|end|>b <|endoftext|> <think> x</think>",
  "camelCase HTTPServer iPhone15",
  "",
  " ",
  "\n",
]


def byte_level(rule):
  return gguf_files.byte_level(rule, TEXTS * 4)


def write_byte_level(path, tokenizer, rule, fill=5, **ids):
  writer = gguf.GGUFWriter(path, "llama")
  vocab = gguf_files.add_byte_level(writer, tokenizer, rule, fill, **ids)
  gguf_files.finish(writer)
  return vocab


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_ids_and_texts(rule, tmp_path):
  theirs = byte_level(rule)
  vocab = write_byte_level(tmp_path / "m.gguf", theirs, rule, bos=260)
  ours = load_tokenizer(tmp_path / "m.gguf")
  theirs.encode_special_tokens = True
  for text in TEXTS:
    ids = theirs.encode(text).ids
    assert ours.encode(text) == ids, text
    assert ours.decode(ids) == theirs.decode(ids)
  assert ours.base_size == len(vocab)
  assert ours.begin == ((260,) if rule == "llama-bpe" else ())
  assert ours.document_end_id == vocab["<|endoftext|>"]
  assert ours.eos_id == vocab["<|end|>"]  # by the chat template
  assert set(ours.stop_ids) == {vocab["<|end|>"], vocab["<|endoftext|>"]}


def test_special_tokens_in_a_users_text_are_text(tmp_path):
  vocab = write_byte_level(tmp_path / "m.gguf", byte_level("gpt-2"), "gpt-2")
  ours = load_tokenizer(tmp_path / "m.gguf")
  special = {vocab[token] for token in gguf_files.SPECIAL}
  assert not special & set(ours.encode("a<|end|>b<|endoftext|>"))
  assert vocab["<think>"] in ours.encode("a <think> b")
  ids = ours.encode_turns([Turn("user", "a<|end|>b")])
  assert ids.count(vocab["<|end|>"]) == 1


def test_a_saved_tokenizer_is_the_same(tmp_path):
  write_byte_level(tmp_path / "m.gguf", byte_level("qwen2"), "qwen2")
  ours = load_tokenizer(tmp_path / "m.gguf")
  ours.save(tmp_path / "saved")
  again = load_tokenizer(tmp_path / "saved")
  assert again.files == ours.files
  assert (again.eos_id, again.stop_ids) == (ours.eos_id, ours.stop_ids)
  assert again.encode_batch(TEXTS) == ours.encode_batch(TEXTS)


def train_sentencepiece(**options):
  """Trains a sentencepiece BPE with bytes for unknown characters."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 4),
    model_writer=model,
    model_type="bpe",
    vocab_size=400,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
    **options,
  )
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_sentencepiece(path, sp, architecture="llama", **settings):
  ids = range(sp.vocab_size())
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_tokenizer_model("llama")
  writer.add_token_list([sp.id_to_piece(i) for i in ids])
  writer.add_token_scores([sp.get_score(i) for i in ids])
  kinds = {sp.unk_id(): 2, sp.bos_id(): CONTROL, sp.eos_id(): CONTROL}
  writer.add_token_types([6 if sp.is_byte(i) else kinds.get(i, 1) for i in ids])
  for key, value in settings.items():
    writer.add_bool(f"tokenizer.ggml.{key}", value)
  gguf_files.finish(writer)


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece_ids_and_texts(adds_space, tmp_path):
  sp = train_sentencepiece(add_dummy_prefix=adds_space)
  write_sentencepiece(tmp_path / "m.gguf", sp, add_space_prefix=adds_space)
  ours = load_tokenizer(tmp_path / "m.gguf")
  for text in TEXTS:
    if adds_space and text.startswith(" "):
      continue  # `transformers` and we add no second space
    assert ours.encode(text) == sp.encode(text), text
    assert ours.decode(sp.encode(text)) == text
  assert ours.begin == (sp.bos_id(),)
  assert ours.eos_id == sp.eos_id()
  assert not {sp.eos_id(), sp.bos_id()} & set(ours.encode("a </s> <s>"))


def test_gemmas_tokens_are_ordered_by_id_and_spaces_are_tokens(tmp_path):
  sp = train_sentencepiece(
    add_dummy_prefix=False, user_defined_symbols=["\n\n", "▁▁"]
  )
  ids = range(sp.vocab_size())
  pieces = [sp.id_to_piece(i) for i in ids]
  special = {sp.unk_id(): 2, sp.bos_id(): CONTROL, sp.eos_id(): CONTROL}
  special |= {pieces.index(t): USER_DEFINED for t in ("\n\n", "▁▁")}
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma2")
  writer.add_tokenizer_model("llama")
  writer.add_token_list(["  " if p == "▁▁" else p for p in pieces])
  writer.add_token_scores([-1000.0] * len(pieces))
  writer.add_token_types(
    [6 if sp.is_byte(i) else special.get(i, 1) for i in ids]
  )
  writer.add_add_space_prefix(False)
  gguf_files.finish(writer)
  ours = load_tokenizer(tmp_path / "m.gguf")
  for text in ("a  b", "x\n\ny", "it's 12345", "日本語"):
    assert ours.encode(text) == sp.encode(text), text


def change(path, **keys):
  """Writes a tokenizer with one key of its metadata changed."""
  reader = gguf.GGUFReader(path)
  writer = gguf.GGUFWriter(path.with_name("changed.gguf"), "llama")
  for key, field in reader.fields.items():
    name = key.removeprefix("tokenizer.ggml.")
    if key.startswith("GGUF.") or key == "general.architecture":
      continue
    value = keys.get(name, field.contents())
    if isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif value is not None:
      writer.add_array(key, value)
  gguf_files.finish(writer)
  return path.with_name("changed.gguf")


@pytest.mark.parametrize(
  "keys, field, code",
  [
    ({"pre": None}, "pre", "unknown_pre_tokenizer"),
    ({"pre": "default"}, "pre", "unknown_pre_tokenizer"),
    ({"model": "bert"}, "model", "unknown_tokenizer"),
    ({"tokens": None}, "tokens", "no_tokenizer"),
    ({"merges": None}, "merges", "bad_tokenizer"),
    ({"token_type": [1, 1]}, "token_type", "bad_tokenizer"),
    ({"eos_token_id": 5000}, "eos_token_id", "special_token_unknown"),
    ({"merges": ["a zzz"]}, None, "bad_tokenizer"),
  ],
)
def test_a_tokenizer_that_is_not_supported(tmp_path, keys, field, code):
  write_byte_level(tmp_path / "m.gguf", byte_level("gpt-2"), "gpt-2")
  path = change(tmp_path / "m.gguf", **keys)
  with pytest.raises(UserError) as caught:
    load_tokenizer(path)
  error = caught.value
  assert (error.code, error.file) == (code, str(path))
  assert error.field == (field and f"tokenizer.ggml.{field}")


def test_a_token_that_occurs_twice(tmp_path):
  write_byte_level(tmp_path / "m.gguf", byte_level("gpt-2"), "gpt-2", fill=0)
  tokens = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.tokens"]
  names = [*tokens.contents()[:-1], "a"]
  with pytest.raises(UserError) as caught:
    load_tokenizer(change(tmp_path / "m.gguf", tokens=names))
  assert caught.value.code == "bad_tokenizer" and "'a'" in caught.value.problem


@pytest.mark.parametrize(
  "rule", ["llama-bpe", "smaug-bpe", "tekken", "deepseek-r1-qwen"]
)
def test_transformers_gives_the_same_ids(rule, tmp_path):
  """Where the file's rule is one that `transformers` follows too."""
  transformers = tiny.library("transformers")
  write_byte_level(tmp_path / "m.gguf", byte_level("gpt-2"), rule)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(
    tmp_path, gguf_file="m.gguf"
  )
  ours = load_tokenizer(tmp_path / "m.gguf")
  for text in TEXTS:
    if "<|" not in text:
      expected = theirs(text, add_special_tokens=False).input_ids
      assert ours.encode(text) == expected, text


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_transformers_reads_sentencepiece_alike(architecture, tmp_path):
  transformers = tiny.library("transformers")
  sp = train_sentencepiece(add_dummy_prefix=architecture == "llama")
  write_sentencepiece(
    tmp_path / "m.gguf",
    sp,
    architecture,
    add_space_prefix=architecture == "llama",
  )
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(
    tmp_path, gguf_file="m.gguf"
  )
  ours = load_tokenizer(tmp_path / "m.gguf")
  for text in TEXTS:
    expected = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == expected, text
    assert ours.decode(expected) == theirs.decode(expected)
