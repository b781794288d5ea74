"""Command line, JSON and config agree, and user errors are short."""

import dataclasses
import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError


def _get(preset):
  return presets.ppo_ptx(preset)


def _parse(*argv, experiment="ppo_ptx"):
  return flags.parse(
    argv, _get, experiment=experiment, default_preset="1.3b", doc="Doc."
  )


def _config(*argv):
  return _parse("--workdir=w", *argv)[0]


def test_without_flags_the_config_is_the_presets():
  assert _parse("--workdir=w") == (presets.ppo_ptx("1.3b"), "w")
  assert _config("--preset=tiny") == presets.ppo_ptx("tiny")
  assert _config("--preset", "6B") == presets.ppo_ptx("6b")


# Texts of one form.
OTHERS = {"data.template_date": "2030-05-31"}
# Some values of other flags need these.
GO_WITH_ALL = {"model.num_heads": "1", "model.tie_embeddings": "false"}


def _text(value):
  if value is None or isinstance(value, bool):
    return str(value).lower()
  return str(value)


@pytest.mark.parametrize("experiment", presets.EXPERIMENTS)
def test_every_leaf_is_a_flag_that_reaches_its_field(experiment):
  default = presets.EXPERIMENTS[experiment]("175b")
  for name, old, option in flags.leaves(default):
    for expected in (OTHERS.get(name) or _another(old, option), old):
      if name in ("model.num_heads", "model.tie_embeddings") and (
        expected == old
      ):
        continue
      config, _ = flags.parse(
        [
          "--workdir=w",
          f"--{name}={_text(expected)}",
          *(f"--{k}={v}" for k, v in GO_WITH_ALL.items() if k != name),
        ],
        presets.EXPERIMENTS[experiment],
        default_preset="175b",
      )
      actual = {name: value for name, value, _ in flags.leaves(config)}[name]
      assert actual == expected or name == "data.explicit", name
      assert type(actual) is type(expected), name


def _another(old, option):
  """Returns an allowed value that differs from the old one, if there is one."""
  if option.choices:
    return next(c for c in option.choices if c != old)
  if option.type is bool:
    return not old
  if option.type is str:
    return old + "x"
  low, high = option.minimum, option.maximum
  if low is not None and low == high:
    return old
  if option.type is int:
    if old is None:
      return low
    return old * 2 if (old > 0 and high is None) else old + 1
  new = old / 2 if old else (high if high is not None else 0.25)
  return low if low is not None and new < low else new


@pytest.mark.parametrize("experiment", presets.EXPERIMENTS)
def test_every_leaf_has_a_sentence_of_help_and_a_plain_type(experiment):
  default = presets.EXPERIMENTS[experiment]("1.3b")
  for name, value, option in flags.leaves(default):
    assert option.help[0].isupper() or option.help[0] in "λ", name
    assert option.help.endswith("."), name
    assert option.type in (bool, int, float, str), name
    assert type(value) is option.type or value is None and option.optional, name


def test_flags_override_the_preset_and_keep_the_rest():
  config = _config("--preset=tiny", "--ppo.kl_coef=0.5", "--seed", "3")
  tiny = presets.ppo_ptx("tiny")
  assert config == dataclasses.replace(
    tiny,
    seed=3,
    ppo=dataclasses.replace(tiny.ppo, kl_coef=0.5),
    data=dataclasses.replace(tiny.data, explicit="ppo.kl_coef,seed"),
  )


def test_booleans():
  assert _config("--norun.tensorboard").run.tensorboard is False
  assert _config("--run.tensorboard=false").run.tensorboard is False
  config = _config("--ppo.bootstrap_truncated", "--seed=4")
  assert config.ppo.bootstrap_truncated is True
  assert config.seed == 4


def test_numbers():
  assert _config("--optimizer.learning_rate=9.65e-6").optimizer == (
    dataclasses.replace(
      presets.ppo_ptx("1.3b").optimizer, learning_rate=9.65e-6
    )
  )
  assert type(_config("--ppo.kl_coef=1").ppo.kl_coef) is float
  assert _config("--mesh.data=-1").mesh.data == -1


def test_fields_that_are_checked_together_change_together():
  config = _config("--preset=tiny", "--model.d_model=96", "--model.num_heads=6")
  assert (config.model.d_model, config.model.num_heads) == (96, 6)


def test_flagfile(tmp_path):
  path = tmp_path / "flags"
  path.write_text("# A comment.\n--preset=tiny\n\n--ppo.kl_coef=0.5\n")
  config = _config(f"--flagfile={path}", "--seed=2")
  assert config.ppo.kl_coef == 0.5
  assert config.model == presets.MODELS["tiny"]
  assert config.seed == 2


def test_a_config_file_and_flags_over_it(tmp_path):
  expected = _config("--preset=tiny", "--ppo.kl_coef=0.5")
  path = tmp_path / "config.json"
  path.write_text(
    json.dumps(
      {"experiment": "ppo_ptx", "config": flags.config_to_dict(expected)}
    )
  )
  assert _config(f"--config={path}") == expected
  assert _config(f"--config={tmp_path}") == expected
  changed = _config(f"--config={path}", "--ppo.kl_coef=0.25")
  assert changed.ppo.kl_coef == 0.25
  assert changed.model == presets.MODELS["tiny"]


def test_a_config_file_of_another_experiment_is_refused(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"experiment": "sft", "config": {}}))
  with pytest.raises(UserError, match="config of 'sft', not of 'ppo_ptx'"):
    _config(f"--config={path}")


@pytest.mark.parametrize("preset", presets.NAMES)
@pytest.mark.parametrize("experiment", presets.EXPERIMENTS)
def test_json_round_trip(experiment, preset):
  get_config = presets.EXPERIMENTS[experiment]
  text = json.dumps(flags.config_to_dict(get_config(preset)))
  other = get_config("tiny" if preset != "tiny" else "6b")
  assert flags.config_from_dict(other, json.loads(text)) == get_config(preset)


@pytest.mark.parametrize(
  "argv, field, code, fix",
  [
    (["--kl_coef=1"], "--kl_coef", "unknown_flag", "--ppo.kl_coef"),
    (["--ppo.kl_cof=1"], "--ppo.kl_cof", "unknown_flag", "--ppo.kl_coef"),
    (["--learning_rate=1"], "--learning_rate", "unknown_flag", "learning_rate"),
    (["--ppo.kl_coef=high"], "--ppo.kl_coef", "wrong_type", ">= 0.0"),
    (["--ppo.kl_coef=none"], "--ppo.kl_coef", "wrong_type", ">= 0.0"),
    (["--ppo.kl_coef=-1"], "--ppo.kl_coef", "not_allowed", ">= 0.0"),
    (["--ppo.kl_coef=nan"], "--ppo.kl_coef", "not_allowed", ">= 0.0"),
    (["--ppo.kl_target=-1"], "--ppo.kl_target", "not_allowed", "or none"),
    (["--ppo.kl_target=high"], "--ppo.kl_target", "wrong_type", "or none"),
    (["--ppo.episodes=1e3"], "--ppo.episodes", "wrong_type", ">= 1"),
    (["--ppo.episodes=0"], "--ppo.episodes", "not_allowed", ">= 1"),
    (["--seed=-1"], "--seed", "not_allowed", ">= 0"),
    (["--model.dtype=int8"], "--model.dtype", "not_allowed", "'bfloat16'"),
    (["--run.keep_best=x"], "--run.keep_best", "not_allowed", "'valid_loss'"),
    (["--model.num_heads=7"], "--model.num_heads", "not_a_divisor", "divides"),
    (
      ["--value_optimizer.learning_rate=0"],
      "--value_optimizer.learning_rate",
      "not_allowed",
      "> 0.0",
    ),
    (["--run.tensorboard=maybe"], "--run.tensorboard", "wrong_type", "true or"),
    (["--preset=6bb"], "--preset", "unknown_preset", "6b"),
    (["stray"], None, "not_a_flag", "--name=value"),
    (["--seed"], None, "bad_flag", "--name=value"),
    (["--flagfile=none"], "--flagfile", "bad_flagfile", "one flag per"),
    (["--config=none"], None, "no_file", "config.json"),
  ],
)
def test_a_user_error_names_its_flag(argv, field, code, fix):
  with pytest.raises(UserError) as caught:
    _config(*argv)
  error = caught.value
  assert (error.field, error.code) == (field, code)
  assert fix in error.fix
  assert len(str(error).splitlines()) <= 3


def test_workdir_is_needed():
  with pytest.raises(UserError, match="missing") as caught:
    _parse("--seed=1")
  assert caught.value.field == "--workdir"


@pytest.mark.parametrize(
  "value, field, code",
  [
    ({"ppo": {"kl_cof": 1}}, "ppo.kl_cof", "unknown_field"),
    ({"ppo": {"kl_coef": "1"}}, "ppo.kl_coef", "wrong_type"),
    ({"ppo": {"kl_coef": True}}, "ppo.kl_coef", "wrong_type"),
    ({"ppo": {"kl_target": False}}, "ppo.kl_target", "wrong_type"),
    ({"ppo": {"episodes": 1.5}}, "ppo.episodes", "wrong_type"),
    ({"run": {"tensorboard": 1}}, "run.tensorboard", "wrong_type"),
    ({"ppo": {"kl_coef": -1}}, "ppo.kl_coef", "not_allowed"),
    ({"ppo": 3}, "ppo", "not_a_table"),
    ({"ppo": {}, "seed": {"a": 1}}, "seed", "wrong_type"),
    ({"seed": None}, "seed", "wrong_type"),
  ],
)
def test_a_wrong_config_file_names_file_and_field(tmp_path, value, field, code):
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"config": value}))
  with pytest.raises(UserError) as caught:
    _config(f"--config={path}")
  # A field that a config file names has no leading dashes.
  assert (caught.value.field, caught.value.code) == (field, code)
  assert caught.value.file == str(path)


def _help(*argv):
  with pytest.raises(flags.Help) as caught:
    flags.parse(
      argv,
      _get,
      doc="What it does.",
      default_preset="1.3b",
      presets=presets.NAMES,
    )
  return str(caught.value)


def test_full_help_shows_every_flag_with_all_its_properties():
  text = _help("--preset=tiny", "--helpfull")
  assert text.startswith("What it does.\n")
  words = " ".join(text.split())
  for name, _, _ in flags.leaves(_get("tiny")):
    assert f"\n  --{name}=" in text, name
  for name in (*presets.NAMES, "--workdir", "--flagfile", "--config"):
    assert name in text
  # Default of the preset, type, unit, range, section.
  assert "--ppo.kl_coef=0.12 (float)" in words
  assert "--ppo.kl_target=none (float or none)" in words
  assert "(episodes; >= 1) [C.4 [P]]" in words
  assert "one of 'float32', 'bfloat16'" in words
  assert "--preset=tiny (str)" in words
  assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_omits_fields_of_imported_models(flag):
  text, full = _help(flag), _help("--helpfull")
  hidden = [name for name, _, o in flags.leaves(_get("tiny")) if o.advanced]
  assert len(hidden) > 30
  for name, _, option in flags.leaves(_get("tiny")):
    assert (f"\n  --{name}=" in text) != option.advanced, name
  assert f"{len(hidden)} more --model.* flags: --helpfull" in text
  assert "more --model" not in full
  for tag in ("[P]:", "[C]:", "[D]:", "[I]:"):
    assert tag in text and tag in full


def test_nothing_global_is_defined():
  from absl import flags as absl_flags

  before = set(absl_flags.FLAGS)
  _config()
  assert set(absl_flags.FLAGS) == before


def test_replace_refuses_unknown_names():
  with pytest.raises(UserError, match="no such field") as caught:
    flags.replace(configs.PpoExperiment(), {"ppo.kl_cof": 1.0})
  assert "ppo.kl_coef" in caught.value.fix


def test_flags_that_the_user_set_are_remembered():
  assert _config("--preset=tiny").data.explicit == ""
  config = _config(
    "--data.max_prompt_tokens=1024", "--seed=0", "--processes.index=0"
  )
  assert config.data.explicit == "max_prompt_tokens,seed"
  assert config.is_explicit("data.max_prompt_tokens")
  assert config.is_explicit("seed")
  assert not config.is_explicit("data.max_response_tokens")
  assert flags.explicit_values(config) == {
    "seed": 0,
    "data.max_prompt_tokens": 1024,
  }


def test_a_command_line_says_whether_it_names_its_settings(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"config": {}}))
  for arguments, expected in (
    ([], False),
    (["--seed=1"], False),
    (["--preset=1.3b"], True),
    ([f"--config={path}"], True),
  ):
    call = flags.parse_call(
      ["--workdir=w", *arguments], _get, default_preset="1.3b"
    )
    assert call.has_settings == expected
