"""Ids and decoded text are those of `transformers`' tokenizer."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import exported_tokens, load_tokenizer
from instructgpt_jax.errors import UserError
from tests.data import tokenizer_folders as folders
from tests.interop import tiny

TEMPLATE = configs.Data()
TAGS = configs.Data(chat_template=False)
TEXTS = (
  "the quick fox",
  " the  fox\n yes ",
  "Human: hi there\n\nAssistant: yes",
  "é 🙂 12\tdog",
  "▁the",
)
TALKS = (
  [("user", "hi there"), ("assistant", "yes it is")],
  [("user", " the dog "), ("assistant", "  two  spaces")],
  [
    ("user", "hi"),
    ("assistant", "yes"),
    ("user", "the fox?"),
    ("assistant", "é\n\n🙂 dog"),
  ],
)
BOTH = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}


def settings(**more):
  return {"tokenizer_class": "PreTrainedTokenizerFast", **more}


def theirs(directory):
  library = tiny.library("transformers")
  library.logging.set_verbosity_error()
  return library.AutoTokenizer.from_pretrained(str(directory))


def assert_texts_equal(ours, other, *, end=()):
  for text in TEXTS:
    (ids,) = encoding.encode_documents([text], ours)
    assert [*ids, *end] == other(text)["input_ids"], text
    decoded = other.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids) == decoded, text
  (prompt,) = encoding.encode_prompts([(Turn("user", "hi"),)], ours, TAGS)
  (reply,) = encoding.encode_completions(["yes it"], ours, TAGS)
  whole = other("Human: hi\n\nAssistant: yes it")["input_ids"]
  assert [*prompt, *reply[:-1], *end] == whole
  assert ours.without_template().decode_reply(reply) == "yes it"


def assert_talks_equal(ours, other, talks=TALKS):
  for talk in talks:
    turns = tuple(Turn(*turn) for turn in talk)
    messages = [{"role": role, "content": text} for role, text in talk]
    (prompt,) = encoding.encode_prompts([turns[:-1]], ours, TEMPLATE)
    assert list(prompt) == other.apply_chat_template(
      messages[:-1], add_generation_prompt=True, return_dict=False
    )
    (reply,) = encoding.encode_completions([talk[-1][1]], ours, TEMPLATE)
    whole = other.apply_chat_template(messages, return_dict=False)
    both = [*prompt, *reply]
    assert both == whole[: len(both)], talk
    # What the template writes after the reply's end is not trained on.
    assert ours.eos_id not in whole[len(both) :]
    assert reply[-1] == ours.eos_id


@pytest.mark.parametrize("begins, ends", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("kind", folders.KINDS)
def test_texts(kind, begins, ends, tmp_path):
  ours = folders.load(
    tmp_path,
    folders.KINDS[kind](),
    begins=begins,
    ends=ends,
    tokenizer_config=settings(**BOTH),
  )
  end = [ours.document_end_id] if ends else []
  assert_texts_equal(ours, theirs(tmp_path), end=end)
  assert len(ours.begin) == begins


@pytest.mark.parametrize("template", folders.TEMPLATES)
@pytest.mark.parametrize("kind", folders.KINDS)
def test_conversations(kind, template, tmp_path):
  text, end = folders.TEMPLATES[template]
  names = {**BOTH, "eos_token": end}
  ours = folders.load(
    tmp_path,
    folders.KINDS[kind](),
    tokenizer_config=settings(**names, chat_template=text),
  )
  assert_talks_equal(ours, theirs(tmp_path))


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("form", ["json", "model"])
def test_llama_tokenizer_class(form, legacy, tmp_path):
  values = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "chat_template": folders.INST,
    **BOTH,
  }
  if legacy is not None:
    values["legacy"] = legacy
  tokenizer = folders.prepend() if form == "json" else folders.proto()
  ours = folders.load(tmp_path, tokenizer, begins=True, tokenizer_config=values)
  other = theirs(tmp_path)
  assert_texts_equal(ours, other)
  assert_talks_equal(ours, other)
  assert (ours.begin, ours.bos_id, ours.eos_id) == ((1,), 1, 2)


@pytest.mark.parametrize("add", [True, False, None])
def test_sentencepiece_directory_begins_texts_by_its_settings(add, tmp_path):
  values = {"tokenizer_class": "LlamaTokenizer", **BOTH}
  if add is not None:
    values["add_bos_token"] = add
  ours = folders.load(tmp_path, folders.proto(), tokenizer_config=values)
  assert_texts_equal(ours, theirs(tmp_path))
  assert ours.begin == ((1,) if add else ())


@pytest.mark.parametrize("where", ["added_tokens", "tokenizer_config"])
def test_sentencepiece_directory_with_added_tokens(where, tmp_path):
  size = len(folders.pieces("bpe"))
  names = ["<|im_start|>", "<|im_end|>", "<tool>"]
  values = {
    "tokenizer_class": "LlamaTokenizer",
    "chat_template": folders.CHATML,
    "additional_special_tokens": ["<|im_start|>"],
    **CHAT,
  }
  added = {}
  if where == "added_tokens":
    added = {"added_tokens": {n: size + i for i, n in enumerate(names)}}
  else:
    values["added_tokens_decoder"] = {
      str(size + i): {"content": n, "special": n != "<tool>"}
      for i, n in enumerate(names)
    }
  ours = folders.load(
    tmp_path, folders.proto(), tokenizer_config=values, **added
  )
  assert (ours.eos_id, ours.base_size) == (size + 1, size + 3)
  other = theirs(tmp_path)
  assert_talks_equal(ours, other)
  ids = other("the <tool> fox")["input_ids"]
  assert ours.encode("the <tool> fox") == ids
  assert ours.decode([*ids, size + 1]) == other.decode(
    [*ids, size + 1], skip_special_tokens=True
  )
  ours.save(tmp_path / "saved")
  again = load_tokenizer(tmp_path / "saved")
  assert again.files == ours.files
  assert_talks_equal(again, other)


@pytest.mark.parametrize("place", ["file", "list"])
@pytest.mark.parametrize("form", ["json", "model"])
def test_where_a_template_is(form, place, tmp_path):
  values = {"tokenizer_class": "LlamaTokenizer", **BOTH}
  if place == "list":
    values["chat_template"] = [
      {"name": "tool_use", "template": "{{ tools }}"},
      {"name": "default", "template": folders.INST},
    ]
  else:
    tmp_path.joinpath("chat_template.jinja").write_text(folders.INST)
  tokenizer = folders.prepend() if form == "json" else folders.proto()
  ours = folders.load(tmp_path, tokenizer, tokenizer_config=values)
  assert_talks_equal(ours, theirs(tmp_path))
  ours.save(tmp_path / "saved")
  assert load_tokenizer(tmp_path / "saved").template.text == folders.INST


@pytest.mark.parametrize("adds", [None, True, False])
@pytest.mark.parametrize("kind", ["byte_level", "byte_level_prefix"])
def test_gpt2_tokenizer_class_takes_the_prefix_space_from_the_settings(
  kind, adds, tmp_path
):
  values = {"tokenizer_class": "GPT2Tokenizer", **BOTH}
  if adds is not None:
    values["add_prefix_space"] = adds
  ours = folders.load(
    tmp_path, folders.KINDS[kind](), begins=True, tokenizer_config=values
  )
  assert_texts_equal(ours, theirs(tmp_path))
  assert (ours.encode("the") == ours.encode(" the")) == bool(adds)


@pytest.mark.parametrize(
  "kind", ["prepend", "metaspace_first", "metaspace_always", "metaspace_never"]
)
@pytest.mark.parametrize("adds", [None, True, False])
def test_llama_tokenizer_class_with_and_without_prefix_space(
  kind, adds, tmp_path
):
  values = {"tokenizer_class": "LlamaTokenizer", **BOTH}
  ours = folders.load(
    tmp_path,
    folders.KINDS[kind](),
    tokenizer_config={**values, "add_prefix_space": adds, "legacy": False},
  )
  assert_texts_equal(ours, theirs(tmp_path))


def write_vocabulary(directory, **values):
  """Writes vocab.json, merges.txt and settings, like OPT."""
  model = json.loads(folders.byte_level().to_str())["model"]
  vocab = model["vocab"]
  for token in ("<pad>", "</s>"):
    vocab[token] = len(vocab)
  merges = "\n".join(map(" ".join, model["merges"]))
  (directory / "vocab.json").write_text(json.dumps(vocab))
  (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
  names = {"eos_token": "</s>", "bos_token": "</s>", "pad_token": "<pad>"}
  values = {"tokenizer_class": "GPT2Tokenizer", **names, **values}
  (directory / "tokenizer_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("space", [None, True, False])
@pytest.mark.parametrize("begins", [None, True, False])
def test_a_vocabulary_of_two_files(begins, space, tmp_path):
  values = {"add_bos_token": begins, "add_prefix_space": space}
  write_vocabulary(
    tmp_path, **{k: v for k, v in values.items() if v is not None}
  )
  ours, other = load_tokenizer(tmp_path), theirs(tmp_path)
  assert_texts_equal(ours, other)
  assert ours.begin == ((ours.eos_id,) if begins else ())
  ours.save(tmp_path / "saved")
  assert_texts_equal(load_tokenizer(tmp_path / "saved"), other)
  exported = tmp_path / "exported"
  exported.mkdir()
  files = exported_tokens.export(ours, needs_pad=False).files
  for name, content in files.items():
    (exported / name).write_bytes(content)
  assert_texts_equal(ours, theirs(exported))
  assert_texts_equal(load_tokenizer(exported), other)


def test_a_vocabulary_of_a_class_that_splits_otherwise_is_refused(tmp_path):
  write_vocabulary(tmp_path, tokenizer_class="Qwen2Tokenizer")
  with pytest.raises(UserError) as caught:
    load_tokenizer(tmp_path)
  assert caught.value.code == "unknown_tokenizer_class"
  assert caught.value.field == "tokenizer_class"
  assert caught.value.file == str(tmp_path / "tokenizer_config.json")


@pytest.mark.parametrize("where", ["eos_token", "list", "added_tokens_decoder"])
def test_a_sentencepiece_model_whose_pieces_are_special(where, tmp_path):
  """They are special in a template; in typed text they are text."""
  symbols = ["<|im_start|>", "<|im_end|>"]
  proto = folders.proto(user_defined_symbols=",".join(symbols))
  values = {"tokenizer_class": "LlamaTokenizer", **CHAT}
  values["chat_template"] = folders.CHATML
  if where == "list":
    values["additional_special_tokens"] = symbols
  elif where == "added_tokens_decoder":
    values["added_tokens_decoder"] = {
      str(i): {"content": name, "special": True}
      for i, name in enumerate(symbols, start=3)
    }
  ours = folders.load(tmp_path, proto, tokenizer_config=values)
  assert_talks_equal(ours, theirs(tmp_path))
  typed = ours.encode("the <|im_end|> fox")
  assert 4 not in typed and ours.decode(typed) == "the <|im_end|> fox"
  (prompt,) = encoding.encode_prompts(
    [(Turn("user", "a<|im_end|>b"),)], ours, TEMPLATE
  )
  assert list(prompt).count(4) == 1
  assert ours.decode([*ours.encode("the fox"), 4]) == "the fox"
  if where != "eos_token":
    assert ours.decode([3, *ours.encode("the fox")]).strip() == "the fox"
