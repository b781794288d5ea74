"""Configs and models of earlier versions are read; old flags name the new."""

import dataclasses
import json

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets, renamed
from instructgpt_jax.data import tokenizers as tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import claims, files
from instructgpt_jax.training import stage_model, tokenizer_store

# A model section as the version before the renames wrote it, of a small Gemma.
OLD_MODEL = {
  "vocab_size": 512, "context": 64, "layers": 2, "width": 32, "heads": 4,
  "mlp_ratio": 4, "dropout": 0.0, "tie_embeddings": True, "init_std": 0.02,
  "position_init": "normal", "dtype": "float32", "remat": "none",
  "scan_layers": False, "vocab_padding": 0, "head_padding": 0, "kv_heads": 2,
  "head_dim": 0, "mlp_width": 0, "activation": "gelu_tanh", "gated": True,
  "norm": "rms_less_one", "norm_eps": 1e-6, "block": "sandwich",
  "qkv_bias": False, "out_bias": False, "mlp_bias": False, "qk_norm": False,
  "query_scalar": 0.0, "attention_cap": 50.0, "logit_cap": 0.0,
  "scale_embeddings": True, "unembedding_bias": False, "positions": "rotary",
  "position_offset": 0, "rotary_dim": 0, "rotary_pairs": False,
  "rotary_base": 10000.0, "rotary_scaling": "none", "rotary_factor": 1.0,
  "rotary_low": 1.0, "rotary_high": 4.0, "rotary_context": 8192,
  "rotary_local_base": 0.0, "window": 16, "window_pattern": "wf",
  "lora_rank": 0, "lora_alpha": 16.0, "lora_layers": "all",
}  # fmt: skip
MODEL = configs.Model(
  vocab_size=512,
  max_seq_len=64,
  num_layers=2,
  d_model=32,
  num_heads=4,
  num_kv_heads=2,
  gated_mlp=True,
  norm="gemma_rms",
  norm_eps=1e-6,
  block="sandwich",
  qkv_bias=False,
  out_bias=False,
  mlp_bias=False,
  attn_logit_softcap=50.0,
  scale_embeddings=True,
  pos_emb="rope",
  sliding_window=16,
  sliding_window_pattern="wf",
)
OLD_OPTIMIZER = {
  "learning_rate": 0.5, "schedule": "cosine", "final_fraction": 0.1,
  "warmup_steps": 3, "warmup_init": 0.0, "b1": 0.9, "b2": 0.95, "eps": 1e-8,
  "weight_decay": 0.0, "clip_norm": 0.0,
}  # fmt: skip
OPTIMIZER = configs.Optimizer(learning_rate=0.5, warmup_steps=3, clip_norm=None)
# Old section → where a pipeline's config has it.
OPTIMIZERS = {
  "pretrain_optimizer": ("pretrain", "optimizer"),
  "sft_optimizer": ("sft", "optimizer"),
  "policy_init_optimizer": ("policy_init", "optimizer"),
  "reward_optimizer": ("reward", "optimizer"),
  "ppo_optimizer": ("ppo", "optimizer"),
  "ptx_optimizer": ("ppo_ptx", "optimizer"),
  "value_optimizer": ("ppo", "value_optimizer"),
}


def parse(experiment, *argv):
  config, _ = flags.parse(
    ["--workdir=w", *argv],
    presets.EXPERIMENTS[experiment],
    experiment=experiment,
    default_preset="tiny",
  )
  return config


def old_pipeline():
  return {
    "model": OLD_MODEL,
    "data": {"common_prefix_chars": 0, "explicit": "sft_optimizer."
      "learning_rate,value_optimizer.learning_rate,max_prompt_tokens"},
    "run": {"save_every": 0, "keep_every": 0, "keep_best": ""},
    "until": "",
    "pretrain": {"microbatch": 0, "sequence": 0},
    "sft": {"microbatch": 0},
    "reward": {"max_rankings": 0, "max_completions": 0},
    "ppo": {
      "kl_target": 0.0, "top_k": 0, "top_p": 1.0, "snapshot_every": 0,
      "clip_value": 0.0, "ptx_sequence": 0, "microbatch": 0,
    },
    **dict.fromkeys(OPTIMIZERS, OLD_OPTIMIZER),
  }  # fmt: skip


def test_an_old_config_file_is_read(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(
    json.dumps({"experiment": "pipeline", "config": old_pipeline()})
  )
  config = parse("pipeline", f"--config={path}")
  assert config.model == MODEL
  for section, field in OPTIMIZERS.values():
    assert getattr(getattr(config, section), field) == OPTIMIZER
  values = {name: value for name, value, _ in flags.leaves(config)}
  for name in (
    "data.common_prefix_chars", "run.save_every", "run.keep_every",
    "run.keep_best", "until", "pretrain.microbatch", "pretrain.sequence",
    "sft.microbatch", "reward.max_rankings", "reward.max_completions",
    "ppo.kl_target", "ppo.snapshot_every", "ppo.clip_value",
    "ppo.ptx_sequence", "ppo.microbatch",
  ):  # fmt: skip
    assert values[name] is None, name
  assert config.data.explicit == (
    "max_prompt_tokens,ppo.value_optimizer.learning_rate,"
    "sft.optimizer.learning_rate"
  )


def test_the_value_optimizer_of_ppo_keeps_its_name(tmp_path):
  path = tmp_path / "config.json"
  config = {"value_optimizer": OLD_OPTIMIZER, "ppo": {"top_k": 0}}
  path.write_text(json.dumps({"experiment": "ppo", "config": config}))
  assert parse("ppo", f"--config={path}").value_optimizer == OPTIMIZER


def test_a_run_of_an_earlier_version_resumes_in_its_workdir(tmp_path):
  config = flags.config_from_dict(presets.pipeline("tiny"), old_pipeline())
  current = flags.config_to_dict(config)
  old = {**flags.config_to_dict(config), **old_pipeline()}
  del old["ppo_ptx"]
  for name, section in old_pipeline().items():
    if name in current and isinstance(section, dict) and name != "model":
      old[name] = {**current[name], **section}
  for section in ("pretrain", "sft", "policy_init", "reward", "ppo"):
    del old[section]["optimizer"]
  del old["ppo"]["value_optimizer"]
  path = tmp_path / files.CONFIG
  path.write_text(json.dumps({"experiment": "pipeline", "config": old}))
  claims.claim_workdir(tmp_path, "pipeline", current)
  assert json.loads(path.read_text())["config"] == current
  other = dataclasses.replace(
    config, model=dataclasses.replace(MODEL, num_layers=3)
  )
  path.write_text(json.dumps({"experiment": "pipeline", "config": old}))
  with pytest.raises(UserError) as caught:
    claims.claim_workdir(tmp_path, "pipeline", flags.config_to_dict(other))
  assert caught.value.field == "model.num_layers"


def test_the_model_of_an_old_stage_is_read():
  assert renamed.read_section("model", configs.Model, OLD_MODEL) == MODEL
  assert renamed.read_section("model", configs.Model, vars(MODEL)) == MODEL
  with pytest.raises(TypeError, match="unheard_of"):
    renamed.read_section("model", configs.Model, {"unheard_of": 1})
  data = renamed.read_section(
    "data", configs.Data, {"common_prefix_chars": 0, "user_tag": ""}
  )
  assert data == configs.Data(common_prefix_chars=None, user_tag="")


@pytest.mark.parametrize(
  "experiment, old, new",
  [
    ("sft", "model.width=64", "model.d_model"),
    ("sft", "model.kv_heads=2", "model.num_kv_heads"),
    ("sft", "model.gated", "model.gated_mlp"),
    ("sft", "nomodel.gated", "model.gated_mlp"),
    ("sft", "model.positions=rotary", "model.pos_emb"),
    ("ppo", "model.rotary_base=1e4", "model.rope_theta"),
    ("pipeline", "sft_optimizer.b1=0.8", "sft.optimizer.b1"),
    ("pipeline", "ptx_optimizer.b1=0.8", "ppo_ptx.optimizer.b1"),
    ("pipeline", "value_optimizer.eps=1", "ppo.value_optimizer.eps"),
  ],
)  # fmt: skip
def test_an_old_flag_names_the_new_one(experiment, old, new):
  with pytest.raises(UserError) as caught:
    parse(experiment, f"--{old}")
  error = caught.value
  assert error.code == "renamed_flag"
  name = old.partition("=")[0].removeprefix("no")
  assert error.field == f"--{name}"
  assert f"--{new}" in error.problem
  assert error.fix == f"give --{new}"


@pytest.mark.parametrize("flag", ["ppo.top_k=5", "ppo.top_p=0.9"])
def test_a_removed_flag_says_why(flag):
  with pytest.raises(UserError) as caught:
    parse("ppo", f"--{flag}")
  assert caught.value.code == "removed_flag"
  assert "whole distribution" in caught.value.problem


@pytest.mark.parametrize("text", ["none", "None", "0", "0.0", ""])
def test_none_has_one_meaning_on_the_command_line(text):
  config = parse("ppo", f"--ppo.kl_target={text}")
  assert config.ppo.kl_target is None
  assert parse("ppo", "--ppo.kl_target=6").ppo.kl_target == 6.0


def test_every_new_name_is_a_field():
  default = flags.config_to_dict(presets.pipeline("tiny"))
  known = renamed.flatten(default)
  for old in OLD_MODEL:
    name = f"model.{old}"
    assert (renamed.new_name(name, known) is None) == (name in known), name
  for old, path in OPTIMIZERS.items():
    new = renamed.new_name(f"{old}.b1", known)
    assert new == ".".join((*path, "b1"))


def test_an_old_stage_opens(tmp_path):
  texts = ["the quick brown fox jumps over the lazy dog"] * 9
  trained = tokenizer.train_tokenizer(
    texts, configs.Tokenizer(vocab_size=64, kind="word")
  )
  tokenizer_store.put_tokenizer(tmp_path, trained)
  info = {
    "kind": "language",
    "model": OLD_MODEL,
    "data": vars(configs.Data()) | {"common_prefix_chars": 0},
    "stage": "sft",
  }
  checkpoints.save_model(tmp_path, {"a": np.zeros(1, np.float32)}, info)
  files.mark_complete(tmp_path, {})
  stage = stage_model.open_stage(str(tmp_path))
  assert stage.model_config == MODEL
  assert stage.data.common_prefix_chars is None
  assert not stage.model_config.adapter_rank("mlp")
