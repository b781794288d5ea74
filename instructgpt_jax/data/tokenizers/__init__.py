"""Tokenizers: SentencePiece, GPT-2's BPE files, Hugging Face tokenizer.json.

Every tokenizer has a padding id and an end-of-text id, and they always differ.
Ids that the vocabulary lacks are appended to it, so `vocab_size` may be one or
two larger than the file's. Text never encodes to either of them.

`base` is the interface; `hugging_face`, `sentencepiece_model` and `gpt2`
implement it. `settings` and `special_tokens` read what the files of a directory
say about special tokens, `loading` chooses the files, `training` trains a new
SentencePiece model. `chat_template` renders conversations. `tokenizer_json` and
`exported_tokens` write tokenizers for Hugging Face's libraries, and
`reward_template` the chat template of an exported reward model.
"""

from instructgpt_jax.data.tokenizers.base import StreamDecoder, Tokenizer
from instructgpt_jax.data.tokenizers.hugging_face import HuggingFace
from instructgpt_jax.data.tokenizers.loading import load_tokenizer
from instructgpt_jax.data.tokenizers.sentencepiece_model import (
  NEWLINE_WORD,
  SentencePiece,
)
from instructgpt_jax.data.tokenizers.training import (
  MAX_TRAINING_CHARS,
  train_tokenizer,
)

__all__ = [
  "MAX_TRAINING_CHARS",
  "NEWLINE_WORD",
  "HuggingFace",
  "SentencePiece",
  "StreamDecoder",
  "Tokenizer",
  "load_tokenizer",
  "train_tokenizer",
]
