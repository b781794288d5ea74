"""Templates of exported reward models end where the score is read."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import (
  exported_tokens,
  load_tokenizer,
  reward_template,
)
from tests.data import tokenizer_folders as folders
from tests.data.test_tokenizer_parity import BOTH, TALKS, settings, theirs

TAGS = (
  configs.Data(),
  configs.Data(user_tag="", assistant_tag="", turn_separator="\\n"),
  configs.Data(user_tag='"Q"', assistant_tag="<|🙂|>", turn_separator="\\t"),
)


def export(tokenizer, data, directory):
  """Writes a reward model's tokenizer, as `hub export` does."""
  files = exported_tokens.export(tokenizer, needs_pad=True).files
  files = reward_template.add_template(files, tokenizer, data)
  directory.mkdir()
  for name, content in files.items():
    (directory / name).write_bytes(content)
  return directory


def check(ours, data, directory):
  """Compares the ids of whole conversations, and reads the export back."""
  other = theirs(export(ours, data, directory))
  for talk in TALKS:
    turns = tuple(Turn(*turn) for turn in talk)
    (prompt,) = encoding.encode_prompts([turns[:-1]], ours, data)
    (reply,) = encoding.encode_untruncated([talk[-1][1]], ours, data)
    messages = [{"role": role, "content": text} for role, text in talk]
    text = other.apply_chat_template(messages, tokenize=False)
    assert other(text).input_ids == [*prompt, *reply], talk
    opened = other.apply_chat_template(
      messages[:-1], tokenize=False, add_generation_prompt=True
    )
    assert other(opened).input_ids == list(prompt)
  again = load_tokenizer(directory)
  assert exported_tokens.same_ids(again, ours)
  return again


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("template", folders.TEMPLATES)
def test_templates_end_with_the_end_of_the_reply(template, in_file, tmp_path):
  text, end = folders.TEMPLATES[template]
  more = {} if in_file else {"chat_template": text}
  path = folders.write(
    tmp_path / "base",
    folders.byte_level(),
    tokenizer_config=settings(**BOTH | {"eos_token": end}, **more),
  )
  if in_file:
    (path / reward_template.TEMPLATE).write_text(text + "\n")
  ours = load_tokenizer(path)
  again = check(ours, configs.Data(), tmp_path / "out")
  assert again.template is not None
  assert again.template.text.removesuffix("\n") == text


@pytest.mark.parametrize("data", TAGS)
def test_prompts_by_tags_have_a_template_for_others_alone(data, tmp_path):
  ours = folders.load(
    tmp_path / "base",
    folders.byte_level(),
    begins=True,
    tokenizer_config=settings(**BOTH),
  )
  again = check(ours, data, tmp_path / "out")
  assert again.template is None


def test_a_template_that_a_run_does_not_use_stays(tmp_path):
  """A policy of the same base has to find the same tokenizer."""
  ours = folders.load(
    tmp_path / "base",
    folders.byte_level(),
    tokenizer_config=settings(**BOTH, chat_template=folders.CHATML),
  ).without_template()
  data = configs.Data(chat_template=False)
  again = load_tokenizer(export(ours, data, tmp_path / "out"))
  assert exported_tokens.same_ids(again.without_template(), ours)


def test_only_the_default_of_several_templates_is_changed(tmp_path):
  entries = [
    {"name": "default", "template": folders.CHATML},
    {"name": "tools", "template": "x"},
  ]
  ours = folders.load(
    tmp_path / "base",
    folders.byte_level(),
    tokenizer_config=settings(
      **BOTH | {"eos_token": "<|im_end|>"}, chat_template=entries
    ),
  )
  path = export(ours, configs.Data(), tmp_path / "out")
  raw = json.loads((path / reward_template.SETTINGS).read_text())
  default, tools = raw["chat_template"]
  assert tools == entries[1] and default["template"] != folders.CHATML
  assert reward_template.restored(raw)["chat_template"] == entries
  assert exported_tokens.same_ids(load_tokenizer(path), ours)


def test_a_template_that_only_begins_like_ours_stays():
  text = reward_template._OPENS + "{{ messages }}"
  assert reward_template.original(text) == text
