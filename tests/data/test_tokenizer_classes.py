"""Classes of `transformers` that change what tokenizer.json defines."""

import json

import pytest

from instructgpt_jax.data.tokenizers import (
  classes,
  exported_tokens,
  load_tokenizer,
)
from tests.data import test_tokenizer_parity as parity
from tests.data import tokenizer_folders as folders
from tests.interop import tiny

TEXTS = (*parity.TEXTS, "a 12345 b", " 1 2", "e\u0301", "It's IT'S\n\n  a")
FILES = {
  "byte_level": folders.byte_level,
  "byte_level_prefix": folders.KINDS["byte_level_prefix"],
  "digits": folders.digits,
  "digits_prefix": lambda: folders.digits(add_prefix_space=True),
  "prepend": folders.prepend,
  "metaspace_first": folders.KINDS["metaspace_first"],
  "unigram": folders.unigram,
}
CLASSES = (
  None,
  classes.LLAMA,
  classes.GPT2,
  classes.QWEN2,
  classes.NEOX,
  classes.GEMMA,
  "CodeLlamaTokenizer",
)
KINDS = (
  "llama",
  "mistral",
  "gpt2",
  "starcoder2",
  "qwen3",
  "gpt_neox",
  "gemma2",
)


def values(name=None, **more):
  named = {"tokenizer_class": name} if name else {}
  return {**named, **parity.BOTH, "chat_template": folders.INST, **more}


def saved(ours, directory):
  """Saves and reopens a tokenizer like a stage, without config.json."""
  ours.save(directory)
  return load_tokenizer(directory)


def exported(ours, directory, kind):
  tokens = exported_tokens.export(ours, needs_pad=False)
  directory.mkdir()
  for name, content in tokens.files.items():
    (directory / name).write_bytes(content)
  (directory / "config.json").write_text(json.dumps({"model_type": kind}))
  return tokens.files


def assert_one_tokenizer(ours, directory, kind):
  """Checks that saved and exported tokenizers have the ids of the source."""
  others = [saved(ours, directory / "saved")]
  exported(others[0], directory / "exported", kind)
  others.append(load_tokenizer(directory / "exported"))
  others.append(saved(others[0], directory / "resaved"))
  theirs = parity.theirs(directory / "exported")
  for text in TEXTS:
    ids = ours.encode(text)
    assert [*ours.begin, *ids] == theirs(text)["input_ids"], text
    assert [o.encode(text) for o in others] == [ids] * 3, text
    decoded = theirs.decode(ids, skip_special_tokens=True)
    assert [o.decode(ids) for o in (ours, *others)] == [decoded] * 4, text
  parity.assert_talks_equal(ours, theirs)
  for other in others:
    parity.assert_talks_equal(other, theirs)
    assert exported_tokens.same_ids(ours, other)


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("kind", ["prepend", "metaspace_first", "byte_level"])
@pytest.mark.parametrize(
  "named", ["LlamaTokenizer", "LlamaTokenizerFast", None]
)
def test_mistral_reads_tokenizer_json_unchanged(kind, named, legacy, tmp_path):
  more = {} if legacy is None else {"legacy": legacy}
  ours = folders.load(
    tmp_path,
    FILES[kind](),
    begins=True,
    tokenizer_config=values(named, add_prefix_space=False, **more),
    config={"model_type": "mistral"},
  )
  theirs = parity.theirs(tmp_path)
  parity.assert_texts_equal(ours, theirs)
  parity.assert_talks_equal(ours, theirs)
  assert not ours.notes
  assert_one_tokenizer(ours, tmp_path, "mistral")


@pytest.mark.parametrize("legacy", [None, False])
def test_a_sentencepiece_directory_of_mistral(legacy, tmp_path):
  """It has the ids of the tokenizer.json that is published with it."""
  more = {} if legacy is None else {"legacy": legacy}
  settings = {
    "tokenizer_config": values(classes.LLAMA, add_bos_token=True, **more),
    "config": {"model_type": "mistral"},
  }
  published = folders.write(
    tmp_path / "json",
    folders.prepend(),
    begins=True,
    special=folders.SPECIAL[:3],
    **settings,
  )
  ours = folders.load(tmp_path / "model", folders.proto(), **settings)
  theirs = parity.theirs(published)
  parity.assert_texts_equal(ours, theirs)
  parity.assert_talks_equal(ours, theirs)
  assert len(ours.notes) == 1
  assert_one_tokenizer(ours, tmp_path, "mistral")


def test_a_sentencepiece_directory_of_mistral_that_names_no_tokens(tmp_path):
  """The special tokens are those of the model."""
  config = {"add_bos_token": True, "chat_template": folders.INST}
  ours = folders.load(
    tmp_path,
    folders.proto(bos_piece="<begin>", eos_piece="<end>"),
    tokenizer_config=config,
    config={"model_type": "mistral"},
  )
  assert (ours.begin, ours.eos_id) == ((1,), 2)
  assert_one_tokenizer(ours, tmp_path, "mistral")


@pytest.mark.parametrize("adds", [None, True, False])
@pytest.mark.parametrize("kind", ["digits", "digits_prefix"])
@pytest.mark.parametrize(
  "named, model", [(classes.GPT2, None), (None, "gpt2"), (None, "starcoder2")]
)
def test_digits_are_split_by_tokenizer_json(named, model, kind, adds, tmp_path):
  more = {} if adds is None else {"add_prefix_space": adds}
  ours = folders.load(
    tmp_path,
    FILES[kind](),
    tokenizer_config=values(named, **more),
    **({"config": {"model_type": model}} if model else {}),
  )
  ids = ours.encode(" a 12345 b")
  assert [ours.token(i) for i in ids] == list("Ġa") + list("Ġ12345Ġb")
  for text in TEXTS:
    assert ours.decode(ours.encode(text)) == text
  (note,) = ours.notes
  assert classes.GPT2 in note
  assert_one_tokenizer(ours, tmp_path, model or "gpt2")


@pytest.mark.parametrize("named", CLASSES)
@pytest.mark.parametrize("kind", FILES)
def test_exports_are_read_with_our_ids(kind, named, tmp_path):
  """This holds for classes that would build another tokenizer, too."""
  for number, model in enumerate((*KINDS, "opt")):
    ours = folders.load(
      tmp_path / str(number),
      FILES[kind](),
      begins=number % 2 == 0,
      tokenizer_config=values(named),
      config={"model_type": model},
    )
    assert_one_tokenizer(ours, tmp_path / str(number), model)


@pytest.mark.parametrize("named", [classes.AS_IS, classes.QWEN2])
def test_a_class_that_no_file_can_change_is_named(named, tmp_path):
  ours = folders.load(
    tmp_path,
    folders.digits(),
    tokenizer_config=values(named),
    config={"model_type": "qwen2"},
  )
  assert classes.QWEN2 in ours.notes[0]
  files = exported(ours, tmp_path / "exported", "qwen2")
  assert exported_tokens.reads_otherwise(files, "qwen2") == classes.QWEN2
  assert exported_tokens.reads_otherwise(files, "qwen3") == ""
  fast = tiny.library("transformers").PreTrainedTokenizerFast
  theirs = fast.from_pretrained(str(tmp_path / "exported"))
  for text in TEXTS:
    assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("name", CLASSES[1:-1])
def test_tokenizer_classes_build_the_listed_pipeline(name, tmp_path):
  """Its tokenizer causes no note, and is exported under its class."""
  tokenizer = FILES["byte_level" if name in CLASSES[2:5] else "prepend"]()
  folders.write(tmp_path, tokenizer, tokenizer_config=values(name))
  rebuilt = parity.theirs(tmp_path).backend_tokenizer
  rebuilt.save(str(tmp_path / "tokenizer.json"))
  ours = load_tokenizer(tmp_path)
  assert not ours.notes
  content = json.loads(rebuilt.to_str())
  assert classes.same(classes.rebuilt(name, content, {}), content)
  settings = json.loads(
    exported_tokens.export(ours, needs_pad=False).files["tokenizer_config.json"]
  )
  assert settings["tokenizer_class"] == name
  assert exported_tokens.reads_otherwise(ours.files, "qwen2") == (
    "" if name == classes.QWEN2 else classes.QWEN2
  )
  assert_one_tokenizer(ours, tmp_path, "llama")


def test_classes_are_those_of_transformers():
  auto = tiny.library("transformers.models.auto.tokenization_auto")
  for kind, name in classes._BY_KIND.items():
    theirs = auto.TOKENIZER_MAPPING_NAMES[kind]
    as_is = ("TokenizersBackend", "MistralCommonBackend")
    assert name == (classes.AS_IS if theirs in as_is else theirs), kind
    wrong = auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert (kind in wrong) == (kind in classes.FORCED), kind
