"""Exported directories in `transformers`: padding, special ids, settings."""

import json
import warnings

import numpy as np
import pytest

from instructgpt_jax import configs, sharding
from instructgpt_jax.hub.__main__ import export_model, import_model
from instructgpt_jax.interop import directory, settings
from instructgpt_jax.models.heads import ScalarModel, abstract_params
from instructgpt_jax.runs import files
from instructgpt_jax.training import inheritance, stage_model, tokenizer_store
from tests.interop import ours, tiny, vocabulary
from tests.models import twin

torch = tiny.library("torch")
transformers = tiny.library("transformers")

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w9 w8", "w3 w1 w4 w1 w5"]


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def base(request, tmp_path_factory):
  """Returns a base model's directory, without a tokenizer."""
  path = tmp_path_factory.mktemp("export") / "base"
  theirs = tiny.make(request.param)
  tiny.save(theirs, path)
  (path / "generation_config.json").unlink(missing_ok=True)
  return path, theirs


def with_tokenizer(path, pad):
  """Replaces a directory's tokenizer; config.json takes its token ids."""
  vocabulary.write(path, pad, spaces=pad == "own")
  file = path / "config.json"
  raw = json.loads(file.read_text())
  raw |= {"eos_token_id": 0, "bos_token_id": 1}
  raw |= {"pad_token_id": {"own": 3, "eos": 0, "none": None}[pad]}
  file.write_text(json.dumps(raw))
  return str(path)


def tokenizer_of(path):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # AutoTokenizer takes the class of a model_type, which may read another kind
    # of tokenizer than these.
    return transformers.PreTrainedTokenizerFast.from_pretrained(path)


def ids_of(value):
  return value if isinstance(value, list) else [value]


def check_ids(path, tokenizer, *, scalar):
  """Checks that every id has a row, and that all files agree on ids."""
  raw = json.loads((path / "config.json").read_text())
  tables = [raw]
  if not scalar:
    tables.append(json.loads((path / "generation_config.json").read_text()))
  loaded = transformers.AutoConfig.from_pretrained(path)
  assert loaded.pad_token_id == raw["pad_token_id"]
  assert loaded.bos_token_id == raw["bos_token_id"]
  for table in tables:
    pad = table.get("pad_token_id")
    eos = ids_of(table["eos_token_id"])
    named = [*eos, table["bos_token_id"]] + ([] if pad is None else [pad])
    assert all(0 <= i < raw["vocab_size"] for i in named)
    assert eos[0] == tokenizer.eos_token_id
    assert pad not in eos
    assert pad is None or pad == tokenizer.pad_token_id


def padded(tokenizer, rows, side, pad):
  """Returns (ids, mask) of padded rows of different lengths."""
  width = max(map(len, rows))
  ids, mask = [], []
  for row in rows:
    room = width - len(row)
    fill, real = [pad] * room, [1] * len(row)
    ids.append(fill + row if side == "left" else row + fill)
    mask.append([0] * room + real if side == "left" else real + [0] * room)
  return torch.tensor(ids), torch.tensor(mask)


def test_language_models(base, tmp_path):
  """Logits and text equal the base's for any padding of its tokenizer."""
  path, theirs = base
  for pad in vocabulary.PADS:
    out = tmp_path / pad
    export_model(with_tokenizer(path, pad), str(out))
    model, tokenizer = tiny.load(out), tokenizer_of(out)
    check_ids(out, tokenizer, scalar=False)
    assert len(tokenizer) <= model.config.vocab_size == 40
    assert type(model) is type(theirs)
    rows = tokenizer(TEXTS).input_ids
    # A user whose tokenizer has no padding takes end-of-text, as usual.
    index = tokenizer.pad_token_id
    index = tokenizer.eos_token_id if index is None else index
    ids, mask = padded(tokenizer, rows, "left", index)
    with torch.no_grad():
      for row in rows:
        torch.testing.assert_close(
          model(torch.tensor([row])).logits,
          theirs(torch.tensor([row])).logits,
          rtol=0,
          atol=1e-5,
        )
      together = model.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False
      )[:, ids.shape[1] :]
      for row, answer in zip(rows, together, strict=True):
        alone = model.generate(
          torch.tensor([row]), max_new_tokens=6, do_sample=False
        )[0, len(row) :]
        assert answer[: len(alone)].tolist() == alone.tolist()


def their_scores(model, ids, mask):
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  # OPT counts them from the mask.
  more = {} if model.config.model_type == "opt" else {"position_ids": positions}
  with torch.no_grad():
    return model(ids, attention_mask=mask, **more).logits[:, 0].numpy()


def our_scores(model, params, rows):
  """Returns scores at the last token of each row, by `scoring.score`."""
  width = max(map(len, rows))
  tokens = np.zeros((len(rows), width), np.int32)
  segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    positions[i, : len(row)] = range(len(row))
  scores = twin.jit(model.apply)(
    {"params": params}, tokens, segments, positions
  )
  return np.asarray(scores)[range(len(rows)), [len(row) - 1 for row in rows]]


def as_stage(path, base, model, params):
  """Returns a finished reward stage that started from the base."""
  start = stage_model.open_stage(base)
  tokenizer_store.put_tokenizer(path, start.tokenizer)
  stage_model.save_stage_model(
    path,
    params,
    kind=stage_model.SCALAR,
    model=model.config,
    data=start.data,
    starts_from=start,
  )
  files.mark_complete(path, {})
  return start


def test_reward_models(base, tmp_path):
  """Scores agree alone, padded left, padded right and in our scorer."""
  source = directory.inspect(base[0])
  model = ScalarModel(source.config)
  params = twin.make_params(model)
  scores = {}
  for pad in vocabulary.PADS:
    work, out = tmp_path / f"{pad}_work", tmp_path / pad
    start = as_stage(work, with_tokenizer(base[0], pad), model, params)
    name = export_model(str(work), str(out))
    theirs, tokenizer = tiny.load(out, scalar=True), tokenizer_of(out)
    assert type(theirs).__name__ == name == source.family.reward_class
    check_ids(out, tokenizer, scalar=True)
    raw = json.loads((out / "config.json").read_text())
    assert raw["pad_token_id"] == tokenizer.pad_token_id is not None
    assert tokenizer.padding_side == "right"
    # Rows end with end-of-text, which is never taken for padding.
    end = [tokenizer.eos_token_id]
    rows = [row + end for row in tokenizer(TEXTS).input_ids]
    if str(rows) not in scores:
      scores[str(rows)] = our_scores(model, params, rows)
    expected = scores[str(rows)] - raw[directory.SHIFT]
    for row, score in zip(rows, expected, strict=True):
      mask = torch.ones(1, len(row), dtype=int)
      alone = their_scores(theirs, torch.tensor([row]), mask)
      np.testing.assert_allclose(alone, [score], atol=1e-4)
    for side in ("left", "right"):
      batch = padded(tokenizer, rows, side, tokenizer.pad_token_id)
      np.testing.assert_allclose(
        their_scores(theirs, *batch), expected, atol=1e-4
      )
    texts = [text + tokenizer.eos_token for text in TEXTS]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(
      batch.input_ids,
      padded(tokenizer, rows, "right", tokenizer.pad_token_id)[0],
    )
    # Read back here, it goes with a policy of the same base.
    again = stage_model.open_stage(str(out))
    inheritance.check_same_tokenizer(again.tokenizer, start.tokenizer, "", "")


def test_padding_that_ends_a_text_is_left_out():
  for ids, eos, pad in (
    (dict(pad_token_id=1, eos_token_id=1), 1, None),
    (dict(pad_token_id=2, eos_token_id=[1, 2]), [1, 2], None),
    (dict(pad_token_id=2, eos_token_id=1), 1, 2),
    (dict(pad_token_id=0, eos_token_id=99), None, 0),
  ):
    actual = settings.build_generation_json(None, vocab_size=10, ids=ids)
    assert (actual["eos_token_id"], actual.get("pad_token_id")) == (eos, pad)


@pytest.fixture
def chosen(tmp_path):
  """Returns a Llama directory with many optional files and settings."""
  path = tmp_path / "base"
  tiny.save(tiny.make("llama", max_position_embeddings=64), path)
  vocabulary.write(path, "none", chat_template="{{ messages[0].content }}")
  raw = json.loads((path / "config.json").read_text())
  raw |= {"eos_token_id": [0, 7], "bos_token_id": 1, "sep_token_id": 99}
  raw |= {"pad_token_id": None, "pretraining_tp": 1, "_name_or_path": "/x"}
  (path / "config.json").write_text(json.dumps(raw))
  sampling = {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
  (path / "generation_config.json").write_text(
    json.dumps({**sampling, "eos_token_id": [0, 8], "pad_token_id": 99})
  )
  return path


def test_files_of_the_base_model_are_copied(chosen, tmp_path):
  """Through an import and a stage that ran with a shorter context."""
  run = configs.SftExperiment(model=configs.Model(max_seq_len=16))
  start = stage_model.open_stage(str(chosen), run=run)
  assert start.model_config.max_seq_len == 16
  first = tmp_path / "first"
  tokenizer_store.put_tokenizer(first, start.tokenizer)
  stage_model.save_stage_model(
    first,
    start.params(sharding.unbox(abstract_params(start.network))),
    kind=stage_model.LANGUAGE,
    model=start.model_config,
    data=start.data,
    starts_from=start,
  )
  files.mark_complete(first, {})
  second = tmp_path / "second"
  as_second = stage_model.open_stage(str(first))
  assert as_second.origin == start.origin
  import_model(str(chosen), str(second))
  before = json.loads((chosen / "config.json").read_text())
  for path in (first, second):
    out = tmp_path / f"{path.name}_out"
    export_model(str(path), str(out))
    after = json.loads((out / "config.json").read_text())
    for key in ("rope_parameters", "pretraining_tp", "hidden_size", "dtype"):
      assert after[key] == before[key], key
    assert after["max_position_embeddings"] == 64
    assert after["sep_token_id"] is None and "_name_or_path" not in after
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and generation["top_p"] == 0.9
    assert generation["eos_token_id"][0] == 0
    assert set(generation["eos_token_id"]) == {0, 7, 8}
    assert generation["bos_token_id"] == 1
    assert "pad_token_id" not in generation
    assert tokenizer_of(out).chat_template == "{{ messages[0].content }}"
    tiny.load(out)


def test_the_dtype_is_the_bases(chosen, tmp_path):
  model = tiny.load(chosen).to(torch.bfloat16)
  tokens = {p.name: p.read_bytes() for p in chosen.glob("tokenizer*")}
  tiny.save(model, tmp_path / "half")
  for name, content in tokens.items():
    (tmp_path / "half" / name).write_bytes(content)
  import_model(str(tmp_path / "half"), str(tmp_path / "work"))
  for flag, dtype in (("", "bfloat16"), ("float32", "float32")):
    out = tmp_path / f"out_{flag}"
    export_model(str(tmp_path / "work"), str(out), dtype=flag)
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert directory.inspect(out).origin.dtype == dtype


def test_ids_without_a_row_are_left_out(tmp_path):
  model, params = ours.make(tmp_path / "first")
  directory.save(
    tmp_path / "m",
    directory.flatten_leaves(params),
    model.config,
    {},
    ids=dict(pad_token_id=13, eos_token_id=[1, 99], bos_token_id=50),
  )
  loaded = tiny.load(tmp_path / "m")
  assert loaded.config.pad_token_id is None
  assert loaded.config.bos_token_id is None
  assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id
  assert loaded.config.eos_token_id == 1
