"""A run that starts from a pretrained model takes its recipe."""

import dataclasses
import json
import pathlib

import pytest

from instructgpt_jax import configs, recipes
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.hub.__main__ import import_model
from instructgpt_jax.interop import directory
from instructgpt_jax.recipes import device, recipe, resolution
from instructgpt_jax.recipes.limits import Lengths
from instructgpt_jax.recipes.values import Start
from instructgpt_jax.training import stage_model
from tests.training import hub, toy

GIGABYTE = 1e9


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Hugging Face directory with 24 positions."""
  return hub.make(tmp_path_factory.mktemp("recipes") / "hf", "llama")


@pytest.fixture(scope="module")
def imported(made, tmp_path_factory):
  path = tmp_path_factory.mktemp("recipes") / "work"
  import_model(made, str(path))
  return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  path = tmp_path_factory.mktemp("recipes") / "data"
  toy.write_data(path)
  return path


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
  """Returns a function that sets the device; a large CPU at first."""

  def set_device(platform, memory=8 * GIGABYTE):
    monkeypatch.setattr(
      device, "find_device", lambda: device.Device(platform, 1, memory)
    )

  set_device("cpu")
  return set_device


def command(name, *arguments):
  """Returns a command line, parsed."""
  return flags.parse_call(
    arguments,
    presets.EXPERIMENTS[name],
    experiment=name,
    default_preset="1.3b",
    runs=False,
  )


def resolved(name, start, data, *arguments, workdir=""):
  kinds = toy.READS.get(name, toy.KINDS)
  call = command(
    name, f"--init_from={start}", *toy.sources(data, *kinds), *arguments
  )
  return recipes.resolve(call._replace(workdir=str(workdir)), name)


def test_a_run_without_a_preset_has_a_recipe(made, imported, data):
  for start in (made, imported):
    run = resolved("sft", start, data)
    assert run.optimizer.learning_rate == 5e-5
    assert run.sft.dropout == 0
    assert run.model.dtype == "float32"
    assert run.model.d_model == hub.SHAPE["d_model"]
    assert run.model.max_seq_len == 24


def test_the_lines_say_what_and_why(made, data, capsys):
  run = resolved("sft", made, data)
  out = capsys.readouterr()
  lines = [x for x in (out.out + out.err).splitlines() if "recipe:" in x]
  assert "up to 0.5B" in lines[0] and made in lines[0] and "cpu" in lines[0]
  assert "optimizer.learning_rate=5e-05" in lines[1]
  limit = run.data.max_response_tokens
  assert f"data.max_response_tokens={limit} keeps 100.0%" in lines[2]
  assert len(lines) == 3


def test_limits_without_data_are_shown_too(made, data, capsys):
  run = resolved("ppo", made, data)
  out = capsys.readouterr()
  limit = run.data.max_response_tokens
  assert f"data.max_response_tokens={limit}" in out.out + out.err


@pytest.mark.parametrize(
  "platform, dtype", [("cpu", "float32"), ("cuda", "bfloat16")]
)
def test_the_device_decides_the_dtype(platform, dtype, made, data, on_device):
  on_device(platform)
  for name in ("sft", "reward", "ppo_ptx"):
    assert resolved(name, made, data).model.dtype == dtype
  run = resolved("sft", made, data, "--model.dtype=bfloat16")
  assert run.model.dtype == "bfloat16"


def test_limits_are_those_of_the_runs_data(made, data, tmp_path):
  words = " ".join(["ba"] * 30)
  records = [{"prompt": "red", "completion": "ba be", "split": "train"}] * 2
  records += [
    {"prompt": f"green {w}", "completion": "ba", "split": "train"}
    for w in toy.WORDS
  ]
  records.append({"prompt": words, "completion": words, "split": "train"})
  path = toy.write_lines(tmp_path / "demonstrations.jsonl", records)
  longer = tmp_path / "longer"
  write_context(made, longer, 64)
  call = command(
    "sft", f"--init_from={longer}", f"--data.demonstrations={path}"
  )
  run = recipes.resolve(call, "sft")
  # One record of 42 is longer, and has 31 tokens.
  assert (run.data.max_prompt_tokens, run.data.max_response_tokens) == (16, 16)
  assert run.model.max_seq_len == 64
  set_by_user = resolved(
    "sft", longer, data, "--data.max_response_tokens=40", "--sft.epochs=7"
  )
  assert set_by_user.data.max_response_tokens == 40
  assert set_by_user.data.max_prompt_tokens <= 24
  assert set_by_user.sft.epochs == 7


@pytest.mark.parametrize(
  "name, flag",
  [("ppo", "ppo.reward_model"), ("evaluate", "measure.reward_model")],
)
def test_answers_are_no_longer_than_the_reward_model_has_seen(
  name, flag, made, imported, data, monkeypatch
):
  opened = stage_model.open_stage
  limits = configs.Data(max_prompt_tokens=9, max_response_tokens=7)

  def open_stage(path, **options):
    if options.get("kind") != stage_model.SCALAR:
      return opened(path, **options)
    return dataclasses.replace(opened(imported), source=None, data=limits)

  monkeypatch.setattr(stage_model, "open_stage", open_stage)
  run = resolved(name, made, data, f"--{flag}=reward")
  assert run.data.max_response_tokens == 7
  run = resolved(name, made, data)
  assert run.data.max_response_tokens > 7


def write_context(source, path, length):
  """Copies a directory, with another context."""
  path.mkdir()
  for file in pathlib.Path(source).iterdir():
    content = file.read_bytes()
    if file.name == directory.CONFIG:
      settings = json.loads(content)
      settings["max_position_embeddings"] = length
      content = json.dumps(settings).encode()
    (path / file.name).write_bytes(content)
  load_tokenizer(path)


@pytest.mark.parametrize(
  "settings, expected",
  [
    ({"resid_pdrop": 0.1, "attn_pdrop": 0.3}, 0.1),
    ({"hidden_dropout": 0.0, "attention_dropout": 0.3}, 0.0),
    ({"residual_dropout": 0.05}, 0.05),
    ({"dropout": 0.1}, 0.1),
    ({"attention_dropout": 0.1}, 0.0),
    ({"resid_pdrop": None}, 0.0),
    ({}, 0.0),
  ],
)
def test_dropout_of_a_config_json(settings, expected):
  assert resolution.trained_dropout(settings) == expected


def test_a_preset_is_used_as_it_is(made, data):
  flag = "--data.max_prompt_tokens=9", "--data.max_response_tokens=5"
  with pytest.raises(UserError) as caught:
    resolved("sft", made, data, "--preset=tiny", *flag)
  assert caught.value.code == "recipe_from_nothing"
  run = resolved("sft", made, data, "--preset=1.3b", *flag)
  paper = presets.sft("1.3b")
  assert run.optimizer == paper.optimizer
  assert run.sft == paper.sft


def test_the_config_of_an_earlier_run_is_used_as_it_is(made, data, tmp_path):
  values = flags.config_to_dict(
    command("sft", "--sft.epochs=9", "--optimizer.learning_rate=1e-4").config
  )
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"experiment": "sft", "config": values}))
  run = resolved("sft", made, data, f"--config={path}")
  assert (run.sft.epochs, run.sft.sequence) == (9, None)


def test_other_starts_have_no_recipe(imported, data, monkeypatch):
  """Stages that began from nothing, and pretraining, keep their presets."""
  with pytest.raises(UserError) as caught:
    resolved("pretrain", imported, data, "--preset=tiny")
  assert caught.value.code == "recipe_from_nothing"
  opened = stage_model.open_stage
  monkeypatch.setattr(
    stage_model,
    "open_stage",
    lambda *a, **k: dataclasses.replace(opened(*a, **k), origin=None),
  )
  run = resolved("sft", imported, data)
  assert run.sft.dropout == presets.sft("1.3b").sft.dropout
  alone = command("sft", *toy.sources(data, "demonstrations"))
  assert recipes.resolve(alone, "sft") == alone.config


def test_a_pipeline_takes_one_recipe(made, data, on_device):
  run = resolved("pipeline", made, data)
  rates = {
    run.sft.optimizer.learning_rate,
    run.policy_init.optimizer.learning_rate,
  }
  assert rates == {5e-5}
  assert run.ppo.kl_coef == 0.05
  assert run.policy_init.pretraining_fraction == 0.1
  on_device("cuda", 40e6)
  assert resolved("pipeline", made, data).model.dtype == "bfloat16"
  # The embedded world has its own preset.
  world = command("pipeline", f"--init_from={made}", "--preset=world")
  with pytest.raises(UserError):
    recipes.resolve(world, "pipeline")


def test_memory_decides_the_microbatch(made, data, on_device):
  assert resolved("sft", made, data).sft.microbatch is None
  on_device("cpu", 1e6)
  run = resolved("sft", made, data)
  assert run.sft.microbatch is not None
  assert run.sft.microbatch < run.sft.batch_size
  run = resolved("sft", made, data, "--sft.microbatch=3")
  assert run.sft.microbatch == 3


def test_unknown_memory_changes_nothing(made, data, on_device):
  on_device("cuda", None)
  for name in ("sft", "reward", "ppo_ptx", "pipeline"):
    assert resolved(name, made, data).model.lora_rank is None


def test_what_a_run_recorded_holds(made, data, tmp_path, on_device):
  """On another device, with other data, the values are the same."""
  first = resolved("sft", made, data, "--sft.epochs=3", workdir=tmp_path)
  record = {"experiment": "sft", "config": flags.config_to_dict(first)}
  (tmp_path / "config.json").write_text(json.dumps(record))
  on_device("cuda", 1e6)
  again = resolved("sft", made, data, "--sft.epochs=3", workdir=tmp_path)
  assert again == first
  other = resolved("sft", made, data, workdir=tmp_path)
  assert other.sft.epochs != 3  # The claim on the workdir refuses it.
  rate = "--optimizer.learning_rate=1e-3"
  other = resolved("sft", made, data, rate, workdir=tmp_path)
  assert other.optimizer.learning_rate == 1e-3


def test_evaluate_measures_less_on_a_cpu(made, data, on_device):
  run = resolved("evaluate", made, data)
  assert run.evaluation.prompts == 100
  on_device("cuda")
  paper = presets.evaluate("1.3b").evaluation
  assert resolved("evaluate", made, data).evaluation == paper


def test_what_fits_a_gpu_of_80_gigabytes():
  """Estimates of the planner: 16 bytes a trained parameter, and activations."""
  shape = dict(
    pos_emb="rope", norm="rms", gated_mlp=True, activation="silu",
    qkv_bias=False, out_bias=False, mlp_bias=False, tie_embeddings=False,
    max_seq_len=4096, vocab_size=32_000,
  )  # fmt: skip
  small = configs.Model(
    num_layers=24, d_model=2048, num_heads=32, d_ff=8192, **shape
  )
  large = configs.Model(
    num_layers=32, d_model=4096, num_heads=32, d_ff=11_008, **shape
  )
  gpu = device.Device("cuda", 1, 72 * GIGABYTE)
  source = Lengths("demonstrations", 1000, [200] * 9, [300] * 9)
  for model, has_adapters in ((small, False), (large, True)):
    chosen = recipe.choose(
      "sft",
      presets.sft("1.3b"),
      Start(
        model=model,
        parameters=resolution._num_params(model),
        dropout=0.0,
        platform="cuda",
        lengths=(source,),
      ),
      {},
      memory=gpu.memory,
      peak=lambda _, run: resolution._estimate_peak(run, gpu, []),
    )
    assert chosen.fits and chosen.peak is not None
    assert ("model.lora_rank" in chosen.values) == has_adapters
    assert chosen.peak > 4 * resolution._num_params(model)
