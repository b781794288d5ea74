"""Adapters in every stage, on our models and on imported ones."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.hub.__main__ import export_model
from instructgpt_jax.interop import directory, peft
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import networks, stage_model
from tests.training import results, soak
from tests.training.test_hub import EIGHT, Runs

RANK = ("--model.lora_rank=2", "--optimizer.learning_rate=1e-2")


class Adapted(Runs):
  """Stages with adapters on a Llama: SFT, reward model and PPO-ptx."""

  def flags(self, name):
    command = [*super().flags(name), *RANK]
    if name == "reward":
      command.append(f"--init_from={self['sft']}")
    return command


@pytest.fixture(scope="module")
def runs(shared, stages):
  return Adapted("llama", shared / "lora", stages)


@contextlib.contextmanager
def raises(code):
  """Expects a user error with a code."""
  with pytest.raises(UserError) as error:
    yield
  assert error.value.code == code


def params_of(path):
  stage = stage_model.open_stage(str(path))
  return stage, stage.params(unbox(abstract_params(stage.network)))


def test_a_pipeline_of_adapters(runs):
  base, below = params_of(runs.source)
  for name in ("sft", "reward", "ppo_ptx"):
    stage, params = params_of(runs[name])
    assert stage.model_config.lora_rank == 2
    assert stage.base.path == str(base.path)
    frozen, trained = lora.split(stage.model_config, params)
    jax.tree.map(
      np.testing.assert_array_equal, frozen, lora.tree_select(frozen, below)
    )
    assert any(
      np.any(x) for path, x in directory.flatten_leaves(trained).items()
      if path.endswith(lora.UP)
    )  # fmt: skip
  losses = [m["loss"] for m in results.metrics(runs["sft"]) if "loss" in m]
  assert losses[-1] < losses[0]
  assert results.metrics(runs["ppo_ptx"])[-1]["grad_norm_ptx"] > 0
  # Each holds its adapters alone.
  sizes = [
    sum(p.stat().st_size for p in (path / "model").rglob("*"))
    for path in (runs["sft"], runs.stages["sft"])
  ]
  assert sizes[0] < sizes[1]


def test_reference_policy_reward_and_value_share_one_base(runs):
  mesh = mesh_lib.make_mesh(configs.Mesh())
  shared = {}
  trees = [
    networks.load_params(stage_model.open_stage(str(runs[name])), mesh, shared)
    for name in ("sft", "reward", "ppo_ptx")
  ]
  first = trees[0]["transformer"]["blocks_0"]["up"]
  for tree in trees[1:]:
    other = tree["transformer"]["blocks_0"]["up"]
    assert other["kernel"] is first["kernel"]
    assert other["lora_b"] is not first["lora_b"]
  assert list(shared) == [str(runs.base / "hf")]


def test_the_start_of_ppo_is_its_reference(runs):
  """This holds for new adapters on a start without any, too."""
  full = runs.stages["sft"]
  stage = stage_model.open_stage(str(full))
  mesh = mesh_lib.make_mesh(configs.Mesh())
  c = dataclasses.replace(stage.model_config, lora_rank=2)
  start = networks.init_params_from(
    type(stage.network)(c), stage, jax.random.key(0), mesh
  )
  assert start.adapts.path == str(full)
  whole = lora.merge_lora(c, start.all_params)
  _, params = params_of(full)
  jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_full_training_can_start_from_adapters(runs, tmp_path):
  """The adapters are merged first."""
  flags = [f for f in runs.flags("ppo_ptx") if f not in RANK]
  done = runs.stages.run("ppo_ptx", *flags, f"--workdir={tmp_path / 'run'}")
  assert done.status == 0, done.err
  stage = stage_model.open_stage(str(tmp_path / "run"))
  assert stage.base is None and not stage.model_config.lora_rank
  assert results.metrics(tmp_path / "run")[0]["kl"] == pytest.approx(
    results.metrics(runs["ppo_ptx"])[0]["kl"], abs=1e-3
  )


def test_killed_and_started_again(runs, tmp_path):
  path = tmp_path / "run"
  server = runs.stages.server
  command = ["experiments.ppo_ptx", *runs.flags("ppo_ptx")]
  child = server.start(*command, f"--workdir={path}")
  assert results.kill_after(child, path, 4).status < 0
  done = server.run(*command, f"--workdir={path}")
  assert done.status == 0, done.err
  results.assert_same_run(path, runs["ppo_ptx"])


def test_eight_devices_match_one(runs, tmp_path):
  mesh = ("--mesh.data=2", "--mesh.fsdp=2", "--mesh.tensor=2")
  runs.run("ppo_ptx", tmp_path / "ppo", *mesh, env=EIGHT)
  actual, expected = (
    results.metrics(path) for path in (tmp_path / "ppo", runs["ppo_ptx"])
  )
  assert len(actual) == len(expected) == 8
  for a, b in zip(actual[:4], expected, strict=False):
    assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


def test_exported_merged_or_alone(runs, tmp_path):
  for name in ("ppo_ptx", "reward"):
    stage, params = params_of(runs[name])
    merged, alone = tmp_path / f"{name}-merged", tmp_path / f"{name}-alone"
    export_model(str(runs[name]), str(merged))
    other = stage_model.open_stage(str(merged))
    again = other.params(unbox(abstract_params(other.network)))
    expected = lora.merge_lora(stage.model_config, params)
    for path, x in directory.flatten_leaves(again).items():
      if "/head/" not in f"/{path}" and "embedding" not in path:
        np.testing.assert_allclose(
          x, directory.flatten_leaves(expected)[path], rtol=1e-5, atol=1e-6
        )
    export_model(str(runs[name]), str(alone), adapters=True)
    adapter_config = json.loads((alone / peft.CONFIG).read_text())
    assert adapter_config["base_model_name_or_path"] == str(runs.source)
    assert adapter_config["r"] == 2 and adapter_config["lora_alpha"] == 16
    assert (alone / "tokenizer.json").exists()


def test_a_pipeline_trains_adapters_on_its_base_model(stages, tmp_path):
  flags = [*soak.flags(stages.data), "--until=policy_init", *RANK[:1]]
  done = stages.run("pipeline", *flags, f"--workdir={tmp_path}")
  assert done.status == 0, done.err
  stage = stage_model.open_stage(str(tmp_path / "policy_init"))
  assert stage.base.path == str(tmp_path / "pretrain")
  assert not stage.base.model_config.lora_rank


@pytest.mark.parametrize(
  "flags, code",
  [
    ((), "no_model_to_adapt"),
    (("--init_from={full}", "--model.lora_rank=-1"), "not_allowed"),
    (("--init_from={sft}", "--model.lora_rank=4"), "other_adapters"),
    (("--init_from={sft}", "--model.lora_alpha=4"), "other_adapters"),
  ],
  ids=str,
)  # fmt: skip
def test_unsupported_adapter_flags_are_refused(flags, code, runs, tmp_path):
  arguments = [f for f in runs.flags("sft") if "init_from" not in f]
  arguments += [
    f.format(sft=runs["sft"], full=runs.stages["pretrain"]) for f in flags
  ]
  done = runs.stages.run("sft", *arguments, f"--workdir={tmp_path / 'run'}")
  assert done.status == 2 and done.error.code == code
  assert "Traceback" not in done.err
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_base_that_is_gone_or_another(runs, tmp_path):
  assert runs["sft"] == runs.base / "sft"
  for name in ("hf", "sft"):
    shutil.copytree(runs.base / name, tmp_path / name)
  moved = str(tmp_path / "sft")
  stage = stage_model.open_stage(moved)
  assert stage.base.path == str(tmp_path / "hf")
  shapes = unbox(abstract_params(stage.network))
  stage.params(shapes)

  file = tmp_path / "hf" / "model.safetensors"
  content = file.read_bytes()
  source = directory.inspect(tmp_path / "hf")
  for name in (
    "model.layers.0.mlp.up_proj.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
  ):
    changed = bytearray(content)
    changed[source.tensors[name].begin + 3] ^= 64
    file.write_bytes(bytes(changed))
    with raises("other_base"):
      stage_model.open_stage(moved).params(shapes)
    with raises("other_base"):
      export_model(moved, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()

  shutil.rmtree(tmp_path / "hf")
  with raises("no_base"):
    stage_model.open_stage(moved)


def test_adapters_of_a_workdir_are_exported_on_a_named_base(runs, tmp_path):
  path = tmp_path / "run"
  flags = [*runs.stages.flags("sft"), *RANK, f"--workdir={path}"]
  done = runs.stages.run("sft", *flags)
  assert done.status == 0, done.err
  with raises("base_is_workdir"):
    export_model(str(path), str(tmp_path / "out"), adapters=True)
  export_model(str(path), str(tmp_path / "out"), adapters=True, base="there")
  adapter_config = json.loads((tmp_path / "out" / peft.CONFIG).read_text())
  assert adapter_config["base_model_name_or_path"] == "there"
  assert adapter_config["fan_in_fan_out"] is True
  with raises("no_adapters"):
    export_model(
      str(runs.stages["sft"]), str(tmp_path / "other"), adapters=True
    )
