"""Special tokens of an exported tokenizer."""

import io
import json

import pytest
import sentencepiece
import tokenizers

from instructgpt_jax.data.tokenizers import exported_tokens, load_tokenizer
from tests.interop import vocabulary


def written(directory, files):
  directory.mkdir()
  for name, content in files.items():
    (directory / name).write_bytes(content)
  return load_tokenizer(directory)


def settings_of(files):
  return json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize("pad", vocabulary.PADS)
def test_a_language_models_tokenizer_stays_as_it_is(tmp_path, pad):
  vocabulary.write(tmp_path, pad)
  tokenizer = load_tokenizer(tmp_path)
  tokens = exported_tokens.export(tokenizer, needs_pad=False)
  assert tokens.files == tokenizer.files
  assert tokens.ids.get("pad_token_id") == (3 if pad == "own" else None)
  assert tokens.ids["eos_token_id"] == 0


@pytest.mark.parametrize("pad", vocabulary.PADS)
def test_a_reward_models_tokenizer_has_padding(tmp_path, pad):
  vocabulary.write(tmp_path / "base", pad)
  files = {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()}
  files["special_tokens_map.json"] = b'{"pad_token": {"content": "</s>"}}'
  if pad == "own":
    files["special_tokens_map.json"] = b'{"pad_token": "[PAD]"}'
  elif pad == "none":
    files["special_tokens_map.json"] = b"{}"
  base = written(tmp_path / "files", files)
  tokens = exported_tokens.export(base, needs_pad=True)
  index = tokens.ids["pad_token_id"]
  assert index not in (0, 1, 2)
  name = vocabulary.PAD if pad == "own" else "<pad>"
  assert settings_of(tokens.files)["pad_token"] == name
  map_ = json.loads(tokens.files["special_tokens_map.json"])
  assert map_["pad_token"] == name and map_.get("eos_token", "</s>") == "</s>"
  fast = tokenizers.Tokenizer.from_str(tokens.files["tokenizer.json"].decode())
  assert fast.token_to_id(name) == index
  again = written(tmp_path / "again", tokens.files)
  assert again.pad_id == index == base.pad_id
  assert exported_tokens.same_ids(again, base)
  text = "w1 w2 <pad> w3"
  assert again.encode(text) == base.encode(text)


def test_a_tokenizer_with_other_words_is_another(tmp_path):
  for name, spaces in (("a", False), ("b", True)):
    vocabulary.write(tmp_path / name, "none", spaces=spaces)
  a, b = (load_tokenizer(tmp_path / name) for name in "ab")
  assert not exported_tokens.same_ids(a, b)


def test_a_sentencepiece_model_gets_padding_beside_it(tmp_path):
  proto = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat", "a dog ran far"] * 20),
    model_writer=proto,
    vocab_size=290,
    model_type="bpe",
    byte_fallback=True,
    pad_id=-1,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  files = {"tokenizer.model": proto.getvalue()}
  base = written(tmp_path / "base", files)
  tokens = exported_tokens.export(base, needs_pad=True)
  assert tokens.ids["pad_token_id"] == base.base_size
  settings = settings_of(tokens.files)
  added = settings["added_tokens_decoder"][str(base.base_size)]
  assert added["content"] == settings["pad_token"] == "<pad>"
  assert settings["eos_token"] == "</s>"
  assert tokens.files["tokenizer.model"] == files["tokenizer.model"]
