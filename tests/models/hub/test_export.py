"""Exported directories in `transformers`: padding, special ids, settings."""

import json
import warnings

import numpy as np
import pytest

from instructgpt_jax.loops import scoring, workdir
from instructgpt_jax.models.hub import families, folder
from instructgpt_jax.models.hub.__main__ import export_model, import_model
from instructgpt_jax.models.transformer import ScalarModel, abstract_params
from instructgpt_jax.runtime import mesh as mesh_lib
from tests.models import twin
from tests.models.hub import tiny, vocabulary

torch = tiny.library("torch")
transformers = tiny.library("transformers")

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w9 w8", "w3 w1 w4 w1 w5"]


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def base(request, tmp_path_factory):
  """A base model's directory, without a tokenizer."""
  path = tmp_path_factory.mktemp("export") / "base"
  theirs = tiny.make(request.param)
  tiny.save(theirs, path)
  (path / "generation_config.json").unlink(missing_ok=True)
  return path, theirs


def with_tokenizer(path, pad):
  """The directory with another tokenizer; config.json says what it says."""
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
    return transformers.AutoTokenizer.from_pretrained(path)


def ids_of(value):
  return value if isinstance(value, list) else [value]


def check_ids(path, tokenizer, *, scalar):
  """Every id has a row, and all files name the same ones."""
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
  """(ids, mask) of rows of different lengths."""
  width = max(map(len, rows))
  ids, mask = [], []
  for row in rows:
    room = width - len(row)
    fill, real = [pad] * room, [1] * len(row)
    ids.append(fill + row if side == "left" else row + fill)
    mask.append([0] * room + real if side == "left" else real + [0] * room)
  return torch.tensor(ids), torch.tensor(mask)


def test_language_models(base, tmp_path):
  """Logits and text are the base's, whatever its tokenizer says of padding."""
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


def our_scores(path, rows):
  """Scores of rows of ids by our own scorer."""
  stage = workdir.open_stage(path)
  params = stage.params(mesh_lib.unbox(abstract_params(stage.network)))
  examples = [
    scoring.Example(np.asarray(row, np.int32), np.ones(len(row), np.float32))
    for row in rows
  ]
  mesh = mesh_lib.make_mesh(workdir.config_lib.Mesh())
  return scoring.score(stage.network, params, examples, mesh), stage


def their_scores(model, ids, mask):
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  # OPT counts them from the mask.
  more = {} if model.config.model_type == "opt" else {"position_ids": positions}
  with torch.no_grad():
    return model(ids, attention_mask=mask, **more).logits[:, 0].numpy()


@pytest.fixture(scope="module")
def reward(base, tmp_path_factory):
  """Our reward model on the base: its source, network and parameters."""
  path, _ = base
  source = folder.look(path)
  model = ScalarModel(source.config)
  return source, model, twin.make_params(model)


@pytest.mark.parametrize("pad", vocabulary.PADS)
def test_reward_models(base, reward, pad, tmp_path):
  """Alone, padded left, padded right and in our scorer: one score."""
  source, model, params = reward
  start = workdir.open_stage(with_tokenizer(base[0], pad))
  work = tmp_path / "work"
  workdir.put_tokenizer(work, start.tokenizer)
  workdir.save_stage_model(
    work,
    params,
    kind=workdir.SCALAR,
    model=model.config,
    data=start.data,
    starts_from=start,
  )
  workdir.files.mark_complete(work, {})
  out = tmp_path / "out"
  name = export_model(str(work), str(out))
  theirs, tokenizer = tiny.load(out, scalar=True), tokenizer_of(out)
  assert type(theirs).__name__ == name == source.family.scalar
  check_ids(out, tokenizer, scalar=True)
  raw = json.loads((out / "config.json").read_text())
  assert raw["pad_token_id"] == tokenizer.pad_token_id is not None
  assert tokenizer.padding_side == "right"
  # Rows end with end-of-text, which is never taken for padding.
  rows = [row + [tokenizer.eos_token_id] for row in tokenizer(TEXTS).input_ids]
  ours, _ = our_scores(str(work), rows)
  again, stage = our_scores(str(out), rows)
  workdir.same_tokenizer(stage.tokenizer, start.tokenizer, "", "")
  np.testing.assert_allclose(again, ours, atol=1e-5)
  shift = raw[folder.SHIFT]
  alone = [
    their_scores(theirs, torch.tensor([r]), torch.ones(1, len(r), dtype=int))[0]
    for r in rows
  ]
  np.testing.assert_allclose(np.add(alone, shift), ours, atol=1e-4)
  for side in ("left", "right"):
    batch = padded(tokenizer, rows, side, tokenizer.pad_token_id)
    np.testing.assert_allclose(their_scores(theirs, *batch), alone, atol=1e-4)
  texts = [text + tokenizer.eos_token for text in TEXTS]
  batch = tokenizer(texts, padding=True, return_tensors="pt")
  np.testing.assert_array_equal(
    batch.input_ids, padded(tokenizer, rows, "right", tokenizer.pad_token_id)[0]
  )
