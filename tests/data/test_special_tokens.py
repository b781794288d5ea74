"""Special tokens that the files of a directory define."""

import json

import pytest

from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.data.tokenizers.special_tokens import Vocabulary, reconcile
from instructgpt_jax.errors import UserError
from tests.data import tokenizer_folders as folders

IDS = {
  name: i
  for i, name in enumerate(
    ["<unk>", "<|start|>", "<|stop|>", "<|turn|>", "<|pad|>", "a", "b"]
  )
}
VOCABULARY = Vocabulary(
  "tokenizer.json", IDS, frozenset(range(5)), unk_id=IDS["<unk>"]
)
STOP, TURN, PAD = IDS["<|stop|>"], IDS["<|turn|>"], IDS["<|pad|>"]


def decide(vocabulary=VOCABULARY, **files):
  named = {f"{name}.json": content for name, content in files.items()}
  return reconcile(named, vocabulary, "dir")


@pytest.mark.parametrize(
  "files",
  [
    {"tokenizer_config": {"eos_token": "<|stop|>"}},
    {"tokenizer_config": {"eos_token": {"content": "<|stop|>"}}},
    {"special_tokens_map": {"eos_token": "<|stop|>"}},
    {
      "tokenizer_config": {"eos_token": None},
      "special_tokens_map": {"eos_token": {"content": "<|stop|>"}},
    },
    {"generation_config": {"eos_token_id": STOP}},
    {"config": {"eos_token_id": STOP}},
    {"config": {"eos_token_id": [STOP, TURN]}},
    {
      "generation_config": {"eos_token_id": [TURN, STOP]},
      "config": {"eos_token_id": STOP},
    },
    # Llama's, Qwen's and Gemma's: names win, the other ids stop generation.
    {
      "tokenizer_config": {"eos_token": "<|stop|>"},
      "generation_config": {"eos_token_id": [TURN, STOP]},
      "config": {"eos_token_id": TURN},
    },
    # What a configuration has by default is no token of a small vocabulary.
    {
      "tokenizer_config": {"eos_token": "<|stop|>"},
      "config": {"eos_token_id": 50256, "bos_token_id": 50256},
    },
  ],
)
def test_where_end_of_text_is_named(files):
  special = decide(**files)
  assert special.eos_id == STOP
  assert set(special.stop_ids) <= {STOP, TURN}


@pytest.mark.parametrize(
  "generation, config, stops",
  [
    ({"eos_token_id": [TURN, STOP, PAD]}, {}, {TURN}),
    ({"eos_token_id": [TURN, 5]}, {}, {TURN}),
    ({"eos_token_id": TURN, "_from_model_config": True}, {}, set()),
    ({}, {"eos_token_id": [STOP, TURN]}, {TURN}),
    ({}, {"eos_token_id": TURN}, set()),
  ],
)
def test_more_ids_stop_generation(generation, config, stops):
  special = decide(
    tokenizer_config={"eos_token": "<|stop|>", "pad_token": "<|pad|>"},
    generation_config=generation,
    config=config,
  )
  assert (special.eos_id, special.pad_id) == (STOP, PAD)
  assert set(special.stop_ids) == stops


@pytest.mark.parametrize(
  "files, code, file, field, other",
  [
    (
      {
        "tokenizer_config": {"eos_token": "<|stop|>"},
        "special_tokens_map": {"eos_token": "<|turn|>"},
      },
      "special_token_conflict",
      "tokenizer_config.json",
      "eos_token",
      "special_tokens_map.json",
    ),
    (
      {
        "tokenizer_config": {"bos_token": "<|stop|>"},
        "special_tokens_map": {"bos_token": {"content": "<|start|>"}},
      },
      "special_token_conflict",
      "tokenizer_config.json",
      "bos_token",
      "special_tokens_map.json",
    ),
    (
      {"special_tokens_map": {"eos_token": "</s>"}},
      "special_token_unknown",
      "special_tokens_map.json",
      "eos_token",
      "tokenizer.json",
    ),
    (
      {
        "generation_config": {"eos_token_id": TURN},
        "config": {"eos_token_id": STOP},
      },
      "special_token_conflict",
      "generation_config.json",
      "eos_token_id",
      "config.json",
    ),
    (
      {"config": {"eos_token_id": 50256}},
      "special_token_unknown",
      "config.json",
      "eos_token_id",
      "tokenizer.json",
    ),
    (
      {"config": {"eos_token_id": 5}},  # a letter: a default of somebody's
      "special_token_unknown",
      "config.json",
      "eos_token_id",
      "tokenizer.json",
    ),
    (
      {"tokenizer_config": {"eos_token": "a"}},
      "special_token_is_text",
      "tokenizer_config.json",
      "eos_token",
      "",
    ),
  ],
)
def test_contradictions_name_both_files(files, code, file, field, other):
  with pytest.raises(UserError) as e:
    decide(**files)
  assert (e.value.code, e.value.file) == (code, f"dir/{file}")
  assert e.value.field == field and other in str(e.value)


def test_an_id_of_a_mark_that_no_file_calls_special():
  vocabulary = Vocabulary("tokenizer.json", IDS, frozenset())
  assert decide(vocabulary, config={"eos_token_id": STOP}).eos_id == STOP
  byte = Vocabulary("tokenizer.json", {"<0x0A>": 0, "a": 1}, frozenset())
  with pytest.raises(UserError):
    decide(byte, config={"eos_token_id": 0})


def test_a_sentencepiece_model_that_config_json_contradicts():
  ours = Vocabulary("tokenizer.model", IDS, frozenset(range(5)), eos_id=STOP)
  assert decide(ours).eos_id == STOP
  assert decide(ours, config={"eos_token_id": [TURN, STOP]}).eos_id == STOP
  with pytest.raises(UserError) as e:
    decide(ours, config={"eos_token_id": TURN})
  assert e.value.code == "special_token_conflict"
  assert "tokenizer.model" in str(e.value)


@pytest.mark.parametrize(
  "files, pad",
  [
    ({"tokenizer_config": {"pad_token": "<|start|>"}}, IDS["<|start|>"]),
    ({"special_tokens_map": {"pad_token": "<|start|>"}}, IDS["<|start|>"]),
    ({"generation_config": {"pad_token_id": 1}}, 1),
    ({"config": {"pad_token_id": 1}}, 1),
    ({}, PAD),  # by its name
    ({"tokenizer_config": {"pad_token": "<|stop|>"}}, -1),  # that is the end
    ({"tokenizer_config": {"pad_token": "a"}}, -1),  # that is text
    ({"tokenizer_config": {"pad_token": "[none]"}}, -1),
    ({"config": {"pad_token_id": STOP}}, PAD),
    ({"config": {"pad_token_id": 5}}, PAD),
  ],
)
def test_padding(files, pad):
  files = {**files}
  files["tokenizer_config"] = {
    **files.get("tokenizer_config", {}),
    "eos_token": "<|stop|>",
  }
  assert decide(**files).pad_id == pad


def byte_directory(directory, special, **files):
  return folders.write(
    directory, folders.byte_level(), special=special, **files
  )


NAMES = ("<|start|>", "<|stop|>", "<|turn|>")


@pytest.mark.parametrize(
  "files",
  [
    {"tokenizer_config": {"eos_token": "<|stop|>"}},
    {"special_tokens_map": {"eos_token": "<|stop|>"}},
    {"generation_config": {"eos_token_id": 262}},
    {"config": {"eos_token_id": 262, "model_type": "llama"}},
  ],
)
def test_a_stage_keeps_settings_of_files_outside_the_tokenizer(files, tmp_path):
  ours = load_tokenizer(byte_directory(tmp_path / "theirs", NAMES, **files))
  assert ours.token(ours.eos_id) == "<|stop|>" and not ours.notes
  assert ours.document_end_id == ours.eos_id == 262
  ours.save(tmp_path / "stage")
  assert not (tmp_path / "stage" / "config.json").exists()
  again = load_tokenizer(tmp_path / "stage")
  assert (again.eos_id, again.pad_id) == (ours.eos_id, ours.pad_id)
  assert again.stop_ids == ours.stop_ids and again.files == ours.files


def test_stop_ids_are_saved_with_a_stage(tmp_path):
  directory = byte_directory(
    tmp_path / "theirs",
    NAMES,
    tokenizer_config={"eos_token": "<|stop|>"},
    generation_config={"eos_token_id": [263, 262]},
  )
  ours = load_tokenizer(directory)
  assert ours.stop_ids == (262, 263)
  ours.save(tmp_path / "stage")
  assert load_tokenizer(tmp_path / "stage").stop_ids == (262, 263)


def test_an_invented_end_of_text_is_reported(tmp_path):
  ours = load_tokenizer(byte_directory(tmp_path, NAMES))
  assert ours.eos_id == ours.base_size
  assert len(ours.notes) == 1 and str(ours.eos_id) in ours.notes[0]


def test_a_named_token_that_is_not_marked_as_special(tmp_path):
  """A user who types it must neither end the reply nor lose the text."""
  tokenizer = folders.byte_level()
  tokenizer.add_tokens(["<END>"])
  ours = folders.load(
    tmp_path, tokenizer, special=(), tokenizer_config={"eos_token": "<END>"}
  )
  ids = ours.encode("the <END> yes")
  assert ours.eos_id not in ids and ours.decode(ids) == "the <END> yes"


def test_special_tokens_in_the_vocabulary_of_a_unigram_model(tmp_path):
  ours = folders.load(
    tmp_path,
    folders.unigram(),
    tokenizer_config={"eos_token": "</s>", "bos_token": "<s>"},
  )
  text = "the </s> fox <s>"
  ids = ours.encode(text)
  assert not {1, 2} & set(ids)
  assert ours.decode(ids) == text


@pytest.mark.parametrize("source", ["added_tokens", "tokenizer_config"])
@pytest.mark.parametrize("form", ["json", "model"])
def test_added_tokens_that_contradict_the_tokenizer(form, source, tmp_path):
  tokenizer = folders.prepend() if form == "json" else folders.proto()
  values = {"eos_token": "</s>"}
  files = {}
  if source == "added_tokens":
    files = {"added_tokens": {"</s>": 7}}
  else:
    values["added_tokens_decoder"] = {"7": {"content": "</s>"}}
  folders.write(tmp_path, tokenizer, tokenizer_config=values, **files)
  with pytest.raises(UserError) as e:
    load_tokenizer(tmp_path)
  assert e.value.code == "added_token_conflict"
  assert e.value.file == str(tmp_path / f"{source}.json")
  assert f"tokenizer.{form}" in str(e.value)


def test_two_files_of_added_tokens_that_contradict_each_other(tmp_path):
  size = len(folders.pieces("bpe"))
  decoder = {str(size): {"content": "<a>"}}
  folders.write(
    tmp_path,
    folders.proto(),
    tokenizer_config={"added_tokens_decoder": decoder},
    added_tokens={"<b>": size},
  )
  with pytest.raises(UserError) as e:
    load_tokenizer(tmp_path)
  assert e.value.code == "added_token_conflict"
  assert e.value.file == str(tmp_path / "added_tokens.json")
  assert "tokenizer_config.json" in str(e.value)


@pytest.mark.parametrize("name", ["tokenizer_config", "config", "added_tokens"])
def test_a_damaged_file_is_named(name, tmp_path):
  folders.write(tmp_path, folders.byte_level())
  (tmp_path / f"{name}.json").write_text('{"eos_token": ')
  with pytest.raises(UserError) as e:
    load_tokenizer(tmp_path)
  assert (e.value.code, e.value.file) == (
    "bad_json",
    str(tmp_path / f"{name}.json"),
  )


def test_a_directory_without_the_tokenizer(tmp_path):
  folders.write(tmp_path, None, tokenizer_config={"eos_token": "</s>"})
  with pytest.raises(UserError, match=r"tokenizer\.json") as e:
    load_tokenizer(tmp_path)
  assert (e.value.code, e.value.file) == ("no_tokenizer", str(tmp_path))


def test_begin_of_text_that_two_files_tell_differently(tmp_path):
  values = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True}
  ours = folders.load(tmp_path, folders.prepend(), tokenizer_config=values)
  assert ours.begin == () and ours.bos_id == 1
  assert len(ours.notes) == 1 and "add_bos_token" in ours.notes[0]


def test_a_vocabulary_of_two_files_has_the_same_settings(tmp_path):
  """vocab.json with merges.txt, as models were published before 2021."""
  letters = json.loads(folders.byte_level().to_str())["model"]["vocab"]
  (tmp_path / "vocab.json").write_text(json.dumps(letters))
  (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
  for name, content in (
    ("added_tokens", {"<|im_start|>": 261, "<|im_end|>": 262}),
    (
      "tokenizer_config",
      {
        "eos_token": "<|im_end|>",
        "chat_template": folders.CHATML,
        "additional_special_tokens": ["<|im_start|>"],
      },
    ),
  ):
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
  ours = load_tokenizer(tmp_path)
  assert ours.eos_id == 262 and ours.template.end == "<|im_end|>"
  ours.save(tmp_path / "saved")
  again = load_tokenizer(tmp_path / "saved")
  assert again.eos_id == 262 and again.template.text == folders.CHATML
