"""Tokenizers that were trained here, read by another library."""

import random

import pytest
import tokenizers

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import (
  load_tokenizer,
  tokenizer_json,
  train_tokenizer,
)

WORDS = "the fox sleeps under a red tree ; where do 12 owls fly at night ?"


def texts(count, seed=0):
  rng = random.Random(seed)
  for _ in range(count):
    words = rng.choices(WORDS.split(), k=rng.randint(1, 9))
    yield rng.choice((" ", "  ", *("\n" * n for n in range(1, 7)))).join(words)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_ids_and_texts_are_the_same(kind, tmp_path):
  size = 320 if kind != "word" else 64
  ours = train_tokenizer(
    texts(300), configs.Tokenizer(vocab_size=size, kind=kind)
  )
  assert ours.kind == kind and ours.is_ours
  files = tokenizer_json.files(ours)
  theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
  samples = [*texts(80, seed=1), "", " ", " a fox"]
  samples.append(
    {
      "bpe": "häß 中 \t </s> <pad>",
      "unigram": "häß 中 \t",  # there a text "</s>" becomes the token
      "word": "the owls",  # and unknown words in a row are not one token
    }[kind]
  )
  theirs.encode_special_tokens = True
  for text in samples:
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids, text
    assert theirs.decode(ids) == ours.decode(ids), text
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  again = load_tokenizer(tmp_path)
  assert (again.pad_id, again.eos_id) == (ours.pad_id, ours.eos_id)
  assert again.vocab_size == ours.vocab_size
