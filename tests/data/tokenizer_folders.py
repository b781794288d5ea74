"""Tiny tokenizer directories of the kinds that published models have."""

import functools
import io
import json

import sentencepiece
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.data.tokenizers.gpt2 import byte_letters

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
  "{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
  "{{ ' ' + m['content'] + ' ' + eos_token }}"
  "{% else %}[INST] {{ m['content'] | trim }} [/INST]{% endif %}{% endfor %}"
)
# As Gemma's: end of text is another token, and texts are trimmed.
TRIMMING = (
  "{{ bos_token }}{% for m in messages %}<|im_start|>"
  "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
  "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# As Qwen 3's: the last reply has an empty thought ahead of it.
THINKING = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
  "{% if loop.last and m['role'] == 'assistant' %}"
  "{{ '(think)\n\n(done)\n\n' + m['content'].lstrip('\n') }}"
  "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
  "chatml": (CHATML, "<|im_end|>"),
  "chatml_of_a_base_model": (CHATML, "</s>"),
  "inst": (INST, "</s>"),
  "trimming": (TRIMMING, "</s>"),
  "thinking": (THINKING, "<|im_end|>"),
}
LINES = [
  "Human: hi there\n\nAssistant: yes it is",
  "the quick brown fox jumps over the lazy dog",
  "[INST] hello [/INST] system user assistant, 12 (or) 3?",
] * 40
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@functools.cache
def proto(kind="bpe", **options):
  """Makes a tokenizer.model like Llama's, which changes no text."""
  out = io.BytesIO()
  settings = dict(
    model_type=kind,
    vocab_size=360,
    byte_fallback=True,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_writer=out,
    **{**settings, **options},
  )
  return out.getvalue()


def pieces(kind):
  sp = sentencepiece.SentencePieceProcessor(model_proto=proto(kind))
  return [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.vocab_size())]


def metaspace(scheme):
  return pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)


def _llama():
  """Makes BPE over characters with ▁ for spaces and byte fallback."""
  vocab = {piece: i for i, (piece, _) in enumerate(pieces("bpe"))}
  merges = sorted(
    (rank, piece[:cut], piece[cut:])
    for piece, rank in vocab.items()
    for cut in range(1, len(piece))
    if piece[:cut] in vocab and piece[cut:] in vocab
  )
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab,
      [(a, b) for _, a, b in merges],
      unk_token="<unk>",
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return tokenizer


def prepend():
  tokenizer = _llama()
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  return tokenizer


def spaced(scheme):
  tokenizer = _llama()
  tokenizer.pre_tokenizer = metaspace(scheme)
  if scheme == "never":
    tokenizer.decoder = decoders.Sequence(
      [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
  return tokenizer


def unigram():
  tokenizer = tokenizers.Tokenizer(
    models.Unigram(pieces("unigram"), 0, byte_fallback=True)
  )
  tokenizer.pre_tokenizer = metaspace("first")
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return tokenizer


def byte_level(add_prefix_space=False):
  vocab = {letter: i for i, letter in enumerate(byte_letters().values())}
  merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("y", "e"), ("ye", "s")]
  vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=add_prefix_space
  )
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def digits(add_prefix_space=False):
  """Makes each digit a token, like StarCoder 2 and SmolLM 2."""
  tokenizer = byte_level()
  vocab = json.loads(tokenizer.to_str())["model"]
  merges = [*map(tuple, vocab["merges"]), ("1", "2"), ("12", "3")]
  ids = vocab["vocab"] | {
    a + b: len(vocab["vocab"]) + i for i, (a, b) in enumerate(merges[-2:])
  }
  tokenizer.model = models.BPE(ids, merges)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
    ]
  )
  return tokenizer


def word_level():
  words = sorted({w for line in LINES for w in line.split()})
  vocab = {w: i for i, w in enumerate(["<unk>", *words])}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return tokenizer


KINDS = {
  "byte_level": byte_level,
  "byte_level_prefix": lambda: byte_level(add_prefix_space=True),
  "prepend": prepend,
  "metaspace_first": lambda: spaced("first"),
  "metaspace_always": lambda: spaced("always"),
  "metaspace_never": lambda: spaced("never"),
  "unigram": unigram,
  "word_level": word_level,
}


def write(
  directory,
  tokenizer,
  *,
  begins=False,
  ends=False,
  special=tuple(SPECIAL),
  **files,
):
  """Writes tokenizer.json, and JSON files by their names without .json.

  Args:
    directory: where to.
    tokenizer: a `tokenizers` object, a tokenizer.model's content, or None.
    begins: whether texts begin with <s>.
    ends: whether texts end with </s>, as others encode them.
    special: special tokens.
    **files: their content.
  """
  directory.mkdir(parents=True, exist_ok=True)
  if isinstance(tokenizer, bytes):
    (directory / "tokenizer.model").write_bytes(tokenizer)
  elif tokenizer is not None:
    tokenizer.add_special_tokens(list(special))
    if begins or ends:
      tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{'<s> ' if begins else ''}$A{' </s>' if ends else ''}",
        special_tokens=[
          (name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")
        ],
      )
    tokenizer.save(str(directory / "tokenizer.json"))
  for name, content in files.items():
    (directory / f"{name}.json").write_text(json.dumps(content))
  return directory


def load(directory, tokenizer, **files):
  """Writes a directory and loads it."""
  return load_tokenizer(write(directory, tokenizer, **files))
