"""The model card of an export says what the run recorded."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from instructgpt_jax import configs, sharding
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.cli import flags
from instructgpt_jax.hub.__main__ import export_model, import_model
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.runs import claims, files
from instructgpt_jax.training import fingerprint, stage_model, tokenizer_store
from tests.interop import ours


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Returns a Hugging Face directory."""
  path = tmp_path_factory.mktemp("card") / "models" / "small-base"
  path.parent.mkdir()
  ours.make(path, vocab_size=13)
  for name, content in ours.tokenizer_files().items():
    (path / name).write_bytes(content)
  return path


def write_run(workdir, config, experiment, summary, *, data=None):
  """Writes the workdir of a finished run."""
  start = stage_model.open_stage(config.init_from, run=config)
  tokenizer_store.put_tokenizer(workdir, start.tokenizer)
  stage_model.save_stage_model(
    workdir,
    start.params(sharding.unbox(abstract_params(start.network))),
    kind=stage_model.LANGUAGE,
    model=start.model_config,
    data=config.data,
    starts_from=start,
    stage=experiment,
  )
  claims.claim_workdir(workdir, experiment, flags.config_to_dict(config))
  if data is not None:
    source = fingerprint.fingerprint_source(str(data), [1, 2], train=2, valid=1)
    extra = {
      fingerprint.KEY: fingerprint.Fingerprint(
        {}, {"data.demonstrations": source}
      ).as_dict()
    }
    with checkpoints.Checkpointer(
      workdir, checkpoints.RetentionPolicy()
    ) as checkpointer:
      checkpointer.save(3, {"x": np.zeros(2, np.float32)}, extra)
  files.mark_complete(workdir, summary)


def sections(path):
  """Returns the YAML lines of a card, and heading → text."""
  text = (path / "README.md").read_text(encoding="utf-8")
  _, header, body = text.split("---\n", 2)
  _, *parts = re.split(r"^## (.*)\n", body, flags=re.MULTILINE)
  return header.splitlines(), dict(zip(parts[::2], parts[1::2], strict=True))


def rows(section):
  """Returns the rows of a section's tables, by their first cell."""
  table = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in section.splitlines()
    if line.startswith("| ")
  ]
  return {row[0]: row[1:] for row in table}


def test_a_card_has_base_data_recipe_and_metrics(base, tmp_path):
  data = tmp_path / "people" / "demos.jsonl"
  data.parent.mkdir()
  data.write_text('{"prompt": "a", "completion": "b"}\n')
  first, second = tmp_path / "policy_init", tmp_path / "sft"
  config = configs.SftExperiment(
    init_from=str(base),
    data=configs.Data(
      demonstrations=f"{data}:0.5", max_prompt_tokens=8, user_tag="Q|:"
    ),
    sft=configs.Sft(epochs=7),
  )
  write_run(first, config, "policy_init", {"steps": 1})
  summary = {
    "steps": 3,
    "valid_loss": 1.25,
    "accuracy": {"mean": 0.5, "low": 0.25, "high": 0.75, "units": 12},
  }
  again = flags.replace(config, {"init_from": str(first)})
  write_run(second, again, "sft", summary, data=data)
  report = {
    "judge": "gold",
    "models": {"sft": {"win_rate": {"mean": 0.5, "low": 0.4, "high": 0.6}}},
  }
  (tmp_path / "report.json").write_text(json.dumps(report))
  out = tmp_path / "out"
  export_model(str(second), str(out))
  header, parts = sections(out)
  assert 'base_model: "small-base"' in header
  assert "library_name: transformers" in header
  assert "pipeline_tag: text-generation" in header
  assert "- sft" in header and "- instructgpt_jax" in header
  source = rows(parts["Data"])["`data.demonstrations`"]
  expected = fingerprint.fingerprint_source(str(data), [1, 2])
  size = data.stat().st_size
  assert source == [
    f"demos.jsonl ({size} bytes)",
    "2 train, 1 valid",
    expected.hash,
  ]
  recipe = rows(parts["Training"])
  assert recipe["`sft.epochs`"] == ["7", "16"]
  assert recipe["`init_from`"][0] == '`"policy_init"`'
  assert recipe["`data.demonstrations`"][0] == '`"demos.jsonl:0.5"`'
  assert r"Q\|:" in parts["Training"]
  assert "`sft.batch_size`" not in recipe
  results = rows(parts["Results"])
  assert results["accuracy"] == ["0.5", "[0.25, 0.75]", "12"]
  assert results["valid_loss"][0] == "1.25"
  assert results["win_rate"] == ["0.5", "[0.4, 0.6]", "–"]
  assert "at most 8 tokens" in parts["Limits"]
  for name in ("README.md", "training_config.json"):
    assert str(tmp_path) not in (out / name).read_text(), name
  # The command of the card reads the config that is beside it.
  (flag,) = re.findall(r"--config=(\S+)", parts["Training"])
  saved = json.loads((out / flag).read_text())
  assert saved["experiment"] == "sft"
  read = flags.config_from_dict(configs.SftExperiment(), saved["config"])
  assert read.sft == config.sft
  assert read.data.demonstrations == "demos.jsonl:0.5"
  # Stages start from an export as before.
  assert stage_model.open_stage(str(out)).kind == stage_model.LANGUAGE


def test_a_workdir_that_moved_still_finds_its_base(base, tmp_path):
  before, after = tmp_path / "before", tmp_path / "after"
  before.mkdir()
  config = configs.SftExperiment(init_from=str(base))
  write_run(before / "policy_init", config, "policy_init", {"steps": 1})
  config = flags.replace(config, {"init_from": str(before / "policy_init")})
  write_run(before / "sft", config, "sft", {"steps": 1})
  before.rename(after)
  export_model(str(after / "sft"), str(tmp_path / "out"))
  header, _ = sections(tmp_path / "out")
  assert 'base_model: "small-base"' in header


def test_an_imported_model_has_a_card_without_training(base, tmp_path):
  import_model(str(base), str(tmp_path / "work"))
  export_model(str(tmp_path / "work"), str(tmp_path / "out"))
  header, parts = sections(tmp_path / "out")
  assert 'base_model: "small-base"' in header
  assert "Training" not in parts and "Results" not in parts
  assert "no record" in parts["Data"]
  assert not (tmp_path / "out" / "training_config.json").exists()


def test_a_name_on_the_hub_is_the_base(base, tmp_path):
  copy = tmp_path / "copy"
  copy.mkdir()
  for path in base.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  raw = json.loads((copy / "config.json").read_text())
  raw["_name_or_path"] = "org/small-1B"
  (copy / "config.json").write_text(json.dumps(raw))
  export_model(str(copy), str(tmp_path / "out"))
  header, _ = sections(tmp_path / "out")
  assert 'base_model: "org/small-1B"' in header
