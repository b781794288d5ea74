"""Paths that are not stages, and recipes unfit for pretrained models."""

import dataclasses
import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.hub.__main__ import import_model
from instructgpt_jax.interop import directory, tensors
from instructgpt_jax.training import inheritance, stage_model
from tests.training import hub


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return hub.make(tmp_path_factory.mktemp("start") / "hf", "gpt2")


@pytest.fixture(scope="module")
def imported(made, tmp_path_factory):
  path = tmp_path_factory.mktemp("start") / "work"
  import_model(made, str(path))
  return str(path)


def refused(path, **options):
  with pytest.raises(UserError) as caught:
    stage_model.open_stage(str(path), field="init_from", **options)
  error = caught.value
  assert (error.field, error.file) == ("init_from", str(path))
  return error


@pytest.mark.parametrize(
  "path, name, revision",
  [
    ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M", ""),
    ("org/name.v1", "org/name.v1", ""),
    ("org/name/", "org/name", ""),
    ("org/name@main", "org/name", "main"),
    ("hf://org/name", "org/name", ""),
    ("hf://org/name@v1.0", "org/name", "v1.0"),
    ("hf://models/org/name", "org/name", ""),
    ("https://huggingface.co/org/name", "org/name", ""),
    ("https://huggingface.co/org/name/tree/main", "org/name", "main"),
    ("https://hf.co/org/name/", "org/name", ""),
    ("huggingface.co/org/name", "org/name", ""),
    ("https://huggingface.co/gpt2", "gpt2", ""),
    ("models--org--name", "org/name", ""),
    ("/cache/hub/models--org--name", "org/name", ""),
    ("/cache/hub/models--org--name/snapshots/0123", "org/name", ""),
  ],
)
def test_a_hub_name_is_recognised_in_the_error(
  path, name, revision, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  error = refused(path)
  assert error.code == "hub_name"
  target = name.rpartition("/")[2]
  at = f" --revision {revision}" if revision else ""
  assert f"`hf download {name}{at} --local-dir {target}`" in error.fix
  assert error.fix.endswith(f"give {target}")
  with pytest.raises(UserError) as caught:
    import_model(path, str(tmp_path / "to"))
  assert (caught.value.code, caught.value.field) == ("hub_name", "--from")
  assert caught.value.fix == error.fix


@pytest.mark.parametrize(
  "path",
  [
    "/org/name",
    "./org/name",
    "a/b/c",
    "there/name",
    "there/name@main",
    "https://example.com/org/name",
    "https://huggingface.co/datasets/org/name",
  ],
)
def test_other_missing_paths_are_no_names_on_the_hub(
  path, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "there").mkdir()
  error = refused(path)
  assert error.code == "no_directory" and "--workdir" in error.fix
  assert "download" not in error.fix
  with pytest.raises(UserError) as caught:
    import_model(path, str(tmp_path / "to"))
  assert caught.value.code == "no_directory"
  assert "save_pretrained" in caught.value.fix


@pytest.mark.parametrize("path", ["gpt2", "runs"])
def test_a_lone_word_may_be_either(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  error = refused(path)
  assert error.code == "no_directory" and "--workdir" in error.fix
  assert f"hf download {path} --local-dir {path}" in error.fix


def test_other_paths_are_named(made, imported, tmp_path):
  source = f"{made}/{tensors.SINGLE_FILE}"
  assert refused(source).code == "not_a_directory"
  assert made in refused(source).fix
  assert refused(f"{imported}/model").code == "part_of_a_stage"
  assert imported in refused(f"{imported}/model").fix
  (tmp_path / "adapters").mkdir()
  (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
  assert refused(tmp_path / "adapters").code == "adapters_alone"
  (tmp_path / "weights").mkdir()
  (tmp_path / "weights" / "model.gguf").write_bytes(b"GGUF")
  error = refused(tmp_path / "weights")
  assert error.code == "no_config" and "model.gguf" in error.fix
  cache = tmp_path / "models--org--name" / "snapshots" / "0123"
  cache.parent.mkdir(parents=True)
  cache.symlink_to(made)
  error = refused(tmp_path / "models--org--name")
  assert error.code == "hub_cache" and str(cache) in error.fix
  (tmp_path / "empty").mkdir()
  assert refused(tmp_path / "empty").code == "no_stage"


def test_a_pointer_in_place_of_the_configuration_is_named(made, tmp_path):
  path = tmp_path / "hf"
  path.mkdir()
  (path / directory.CONFIG).write_text(
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
  )
  (path / tensors.SINGLE_FILE).write_bytes(b"")
  with pytest.raises(UserError) as caught:
    stage_model.open_stage(str(path))
  assert caught.value.code == "lfs_pointer"
  assert caught.value.file == str(path / directory.CONFIG)


def parsed(name, *arguments):
  actual, _ = flags.parse(
    [*arguments, "--workdir=w", "--model.max_seq_len=24"],
    getattr(presets, name),
    default_preset="tiny",
  )
  return actual


STAGES = ("pretrain", "sft", "policy_init", "reward", "ppo", "ppo_ptx")


@pytest.mark.parametrize("preset", presets.SMALL)
@pytest.mark.parametrize("name", STAGES)
def test_a_recipe_from_nothing_is_refused(name, preset, made, imported):
  for start in (made, imported):
    with pytest.raises(UserError) as caught:
      inheritance.inherit_architecture(
        parsed(name, f"--preset={preset}", f"--init_from={start}")
      )
    error = caught.value
    assert error.code == "recipe_from_nothing"
    assert error.field == "optimizer.learning_rate"
    assert "--optimizer.learning_rate=1e-5" in error.fix
    assert ("--value_optimizer.learning_rate" in error.fix) == ("ppo" in name)


def test_a_recipe_for_pretrained_models_is_used(made):
  for name in ("sft", "reward", "ppo_ptx"):
    inheritance.inherit_architecture(
      parsed(name, "--preset=125m", f"--init_from={made}")
    )
  # GPT-3's rates are those of a model trained from nothing.
  with pytest.raises(UserError):
    inheritance.inherit_architecture(
      parsed("pretrain", "--preset=125m", f"--init_from={made}")
    )


def test_a_rate_that_was_set_is_used(made):
  """This holds for the preset's value, too."""
  rate = "--optimizer.learning_rate"
  run = parsed("sft", f"--init_from={made}", f"{rate}=1e-3")
  assert inheritance.inherit_architecture(run).optimizer.learning_rate == 1e-3
  value = "--value_optimizer.learning_rate=3e-4"
  with pytest.raises(UserError) as caught:
    inheritance.inherit_architecture(
      parsed("ppo", f"--init_from={made}", value)
    )
  assert "value_optimizer" not in caught.value.fix
  inheritance.inherit_architecture(
    parsed("ppo", f"--init_from={made}", value, f"{rate}=3e-4")
  )


def test_a_pipeline_is_judged_as_a_whole(made):
  rates = [
    f"--{name}.optimizer.learning_rate=1e-3"
    for name in ("sft", "policy_init", "reward", "ppo", "ppo_ptx")
  ]
  start = f"--init_from={made}"
  # Only the world's public comparisons make a stage of them.
  alone = "--world.public_comparisons=0"
  for more, field in (
    ([], "reward_init.optimizer.learning_rate"),
    ([alone], "ppo.value_optimizer.learning_rate"),
  ):
    with pytest.raises(UserError) as caught:
      inheritance.inherit_architecture(parsed("pipeline", start, *rates, *more))
    assert caught.value.field == field
  value = "--ppo.value_optimizer.learning_rate=1e-3"
  whole = parsed("pipeline", start, alone, *rates, value)
  whole = inheritance.inherit_architecture(whole)
  # Its stages are not judged again.
  stage = configs.SftExperiment(
    init_from=made,
    model=whole.model,
    optimizer=whole.sft.optimizer,
    data=whole.data,
  )
  inheritance.inherit_architecture(stage)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_only_a_shorter_context_with_rope_can_be_asked_for(kind, tmp_path):
  made = hub.make(tmp_path / "hf", kind)
  start = [f"--init_from={made}", "--optimizer.learning_rate=1e-5"]
  for context, fits in ((16, kind == "llama"), (24, True), (48, False)):
    run, _ = flags.parse(
      [*start, "--workdir=w", f"--model.max_seq_len={context}"],
      presets.sft,
      default_preset="tiny",
    )
    if fits:
      model = inheritance.inherit_architecture(run).model
      assert model.max_seq_len == context
      continue
    with pytest.raises(UserError) as caught:
      inheritance.inherit_architecture(run)
    assert caught.value.code == "other_architecture"
    assert caught.value.field == "model.max_seq_len"


def test_stages_remember_where_training_began(made, imported, tmp_path):
  start = stage_model.open_stage(imported)
  assert start.origin == stage_model.open_stage(made).origin
  raw = json.loads((tmp_path / made / directory.CONFIG).read_text())
  assert start.origin.config == raw


def test_our_stages_keep_their_recipes(imported, monkeypatch):
  opened = stage_model.open_stage(imported)
  stage = dataclasses.replace(opened, origin=None)
  monkeypatch.setattr(inheritance, "open_stage", lambda *a, **k: stage)
  inheritance.inherit_architecture(parsed("sft", f"--init_from={imported}"))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_import_is_no_more_than_its_directory(kind, tmp_path):
  """Limits and context come from the run, as without an import."""
  source = hub.make(tmp_path / "hf", kind)
  import_model(source, str(tmp_path / "work"))
  run = flags.replace(
    presets.sft("tiny"),
    {
      "model.max_seq_len": 16,
      "data.max_prompt_tokens": 9,
      "data.max_response_tokens": 5,
      "optimizer.learning_rate": 1e-5,
    },
  )
  inherited = [
    inheritance.inherit_architecture(
      dataclasses.replace(run, init_from=str(path))
    )
    for path in (source, tmp_path / "work")
  ]
  first, second = (dataclasses.replace(c, init_from="") for c in inherited)
  assert first == second
  assert first.model.max_seq_len == (24 if kind == "gpt2" else 16)
  assert first.data.max_prompt_tokens == 9
