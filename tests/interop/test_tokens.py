"""Imported and exported tokens of each family, end-of-text named anywhere."""

import json
import warnings

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import classes
from instructgpt_jax.hub.__main__ import export_model
from instructgpt_jax.training import stage_model
from tests.data import tokenizer_folders as folders
from tests.interop import tiny

torch = tiny.library("torch")
transformers = tiny.library("transformers")

# Place of the end-of-text name → kind of tokenizer that tests it.
PLACES = {
  "tokenizer_config": "byte_level",
  "special_tokens_map": "prepend",
  "config": "metaspace_first",
  "generation_config": "unigram",
  "sentencepiece": "prepend",
}
EOS = "<|im_end|>"
TEXTS = ("the quick fox", "  two  spaces ", "yes\n\né 🙂 dog")
TALK = [
  {"role": "user", "content": "hi there"},
  {"role": "assistant", "content": "yes it is"},
  {"role": "user", "content": "the fox?"},
  {"role": "assistant", "content": " é\n\n🙂 dog"},
]


def base(path, family, place, template):
  """Writes a model without padding; returns the id of end-of-text."""
  form = folders.proto() if place == "sentencepiece" else None
  tokenizer = form or folders.KINDS[PLACES[place]]()
  if form:  # The marks of its chat stand in files beside it.
    size = len(folders.pieces("bpe"))
    added = {name: size + i for i, name in enumerate(folders.SPECIAL[3:])}
    end, rows = added[EOS], size + len(added)
    files = {"added_tokens": added}
  else:
    tokenizer.add_special_tokens(list(folders.SPECIAL))
    end, rows = tokenizer.token_to_id(EOS), tokenizer.get_vocab_size()
    files = {}
  model = tiny.make(
    family,
    vocab_size=rows,
    pad_token_id=None,
    eos_token_id=end if place == "config" else None,
    bos_token_id=None,
  )
  tiny.save(model, path)
  (path / "generation_config.json").unlink(missing_ok=True)
  settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
  if form:
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
  if template:
    settings["chat_template"] = folders.CHATML
  if place in ("tokenizer_config", "sentencepiece"):
    settings["eos_token"] = EOS
  elif place == "special_tokens_map":
    files["special_tokens_map"] = {"eos_token": {"content": EOS}}
  elif place == "generation_config":
    files["generation_config"] = {"eos_token_id": [end]}
  folders.write(path, tokenizer, tokenizer_config=settings, **files)
  return end


def their_tokenizer(path):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    model = json.loads((path / "config.json").read_text())["model_type"]
    if model not in classes.FORCED:
      return transformers.AutoTokenizer.from_pretrained(path)
    # AutoTokenizer would take the class of the model's type.
    name = json.loads((path / "tokenizer_config.json").read_text())
    kind = getattr(transformers, name["tokenizer_class"])
    return kind.from_pretrained(path)


def assert_same_tokens(ours, theirs, *, template):
  for text in TEXTS:
    ids = theirs(text)["input_ids"]
    assert [*ours.begin, *ours.encode(text)] == ids, text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
  if not template:
    assert ours.template is None
    return
  turns = tuple(Turn(m["role"], m["content"]) for m in TALK)
  (prompt,) = encoding.encode_prompts([turns[:-1]], ours, configs.Data())
  assert list(prompt) == theirs.apply_chat_template(
    TALK[:-1], add_generation_prompt=True, return_dict=False
  )
  (reply,) = encoding.encode_completions(
    [TALK[-1]["content"]], ours, configs.Data()
  )
  whole = theirs.apply_chat_template(TALK, return_dict=False)
  assert [*prompt, *reply] == whole[: len(prompt) + len(reply)]


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_tokens_without_padding(family, tmp_path):
  for number, place in enumerate(PLACES):
    path, out = tmp_path / place, tmp_path / f"{place}_out"
    # Each family meets both in turn; what is exported must not differ by it.
    template = (number + len(family)) % 2 == 0
    end = base(path, family, place, template)
    ours = stage_model.open_stage(str(path)).tokenizer
    assert ours.eos_id == end, place
    assert ours.pad_id >= ours.base_size  # a row of its own
    if (family, place) != ("mistral", "sentencepiece"):  # without spaces there
      assert_same_tokens(ours, their_tokenizer(path), template=template)

    export_model(str(path), str(out))
    exported = their_tokenizer(out)
    assert exported.eos_token_id == end, place
    assert exported.pad_token_id is None, place
    assert_same_tokens(ours, exported, template=template)
    rows = json.loads((path / "config.json").read_text())["vocab_size"]
    for kind in (transformers.AutoConfig, transformers.GenerationConfig):
      named = kind.from_pretrained(out)
      assert named.eos_token_id in (end, [end]), (place, kind)
      assert named.pad_token_id is None, (place, kind)
    assert tiny.load(out).config.vocab_size == rows
    again = stage_model.open_stage(str(out)).tokenizer
    assert (again.eos_id, again.begin) == (end, ours.begin)
    assert_same_tokens(again, exported, template=template)
