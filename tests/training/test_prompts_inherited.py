"""A stage's prompt format and limits are those of the stage before."""

import dataclasses

import jax
import pytest

from instructgpt_jax import configs
from instructgpt_jax.configs import presets
from instructgpt_jax.data import encoding
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import evaluate
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.runs import files
from instructgpt_jax.training import (
  inheritance,
  networks,
  stage_model,
  tokenizer_store,
)

DATA = configs.Data(
  user_tag="Q>",
  assistant_tag="A>",
  turn_separator="|",
  max_prompt_tokens=20,
  max_response_tokens=10,
)
PRESET = configs.Data()


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  """Makes the workdir of a finished stage from its name and data config."""
  root = tmp_path_factory.mktemp("stages")
  tokenizer = tokenizer_lib.train_tokenizer(
    ["hello world, how are you today?"] * 20, configs.Tokenizer(vocab_size=340)
  )
  mesh = mesh_lib.make_mesh(configs.Mesh(data=1), jax.devices()[:1])
  model = configs.Model(
    vocab_size=tokenizer.vocab_size,
    max_seq_len=32,
    num_layers=1,
    d_model=8,
    num_heads=1,
  )
  made = {}

  def stage(name, data=DATA):
    if (name, data) not in made:
      network = (ScalarModel if name == "reward" else LanguageModel)(model)
      directory = root / str(len(made))
      tokenizer_store.put_tokenizer(directory, tokenizer)
      stage_model.save_stage_model(
        directory,
        networks.init_params(network, jax.random.key(0), mesh),
        kind=stage_model.SCALAR if name == "reward" else stage_model.LANGUAGE,
        model=model,
        data=data,
        stage=name,
        step=1,
      )
      files.mark_complete(directory, {})
      made[name, data] = str(directory)
    return made[name, data]

  return stage


def run_from(path, kind=presets.ppo, explicit=(), **data):
  """Returns a config that starts from a stage; the user sets `explicit`."""
  section = dataclasses.replace(PRESET, explicit=",".join(explicit), **data)
  return dataclasses.replace(kind("tiny"), init_from=path, data=section)


FIELDS = (
  "user_tag",
  "assistant_tag",
  "turn_separator",
  "max_prompt_tokens",
  "max_response_tokens",
)


@pytest.mark.parametrize("name", ["pretrain", "policy_init", "sft", "reward"])
@pytest.mark.parametrize(
  "kind", [presets.sft, presets.ppo, presets.evaluate, presets.pipeline]
)
def test_unset_fields_follow_the_stage_and_are_shown(name, kind, make, capsys):
  asked = run_from(make(name), kind)
  inherited = inheritance.inherit_architecture(asked)
  shown = capsys.readouterr().err
  for field in FIELDS:
    assert getattr(inherited.data, field) == getattr(DATA, field)
    assert f"data.{field}={getattr(DATA, field)}" in shown
  same = {name: getattr(asked.data, name) for name in FIELDS}
  assert dataclasses.replace(inherited.data, **same) == asked.data
  assert inheritance.inherit_architecture(inherited) == inherited
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize("field", FIELDS[:3])
def test_other_tags_are_refused_like_another_tokenizer(field, make):
  path = make("sft")
  with pytest.raises(UserError) as caught:
    inheritance.inherit_architecture(
      run_from(path, explicit=[field], **{field: "User>"})
    )
  error = caught.value
  assert (error.code, error.file) == ("other_prompts", path)
  assert repr(getattr(DATA, field)) in error.problem
  assert "'User>'" in error.problem
  assert f"--data.{field}" in error.fix


def test_the_same_tags_may_be_given(make):
  same = dict(user_tag="Q>", assistant_tag="A>", turn_separator="|")
  inherited = inheritance.inherit_architecture(
    run_from(make("sft"), explicit=[*same], **same)
  )
  assert (inherited.data.user_tag, inherited.data.assistant_tag) == ("Q>", "A>")


def test_a_base_model_has_no_prompt_format(make):
  """A base model reads documents; the first stage with prompts chooses."""
  inherited = inheritance.inherit_architecture(
    run_from(make("pretrain"), presets.sft, ["user_tag"], user_tag="User>")
  )
  assert inherited.data.user_tag == "User>"
  large = dataclasses.replace(DATA, max_prompt_tokens=999)
  inherited = inheritance.inherit_architecture(
    run_from(make("pretrain", large), presets.sft)
  )
  assert inherited.data.max_prompt_tokens == PRESET.max_prompt_tokens


def test_other_limits_are_shown_in_one_line(make, capsys):
  limit = {"max_response_tokens": 7}
  inherited = inheritance.inherit_architecture(
    run_from(make("sft"), explicit=[*limit], **limit)
  )
  assert inherited.data.max_response_tokens == 7
  assert inherited.data.max_prompt_tokens == 20
  (line,) = [
    line
    for line in capsys.readouterr().err.splitlines()
    if "max_response_tokens=7" in line
  ]
  assert "10" in line


class Templated:
  """Stub tokenizer with a chat template."""

  def __init__(self, template):
    self.template = template


def test_tags_that_a_chat_template_replaces_do_not_matter():
  ours = dataclasses.replace(DATA, user_tag="other")
  plain, templated = Templated(None), Templated("{{ messages }}")
  form = encoding.prompt_format
  assert form(DATA, plain) != form(ours, plain)
  assert form(DATA, templated) == form(ours, templated)
  off = dataclasses.replace(ours, chat_template=False)
  assert form(off, templated) != form(ours, templated)
  assert form(off, plain) == form(ours, plain)


def test_the_template_is_named_where_it_makes_the_difference(make):
  stage = dataclasses.replace(
    stage_model.open_stage(make("sft")), tokenizer=Templated("{{ messages }}")
  )
  off = dataclasses.replace(DATA, chat_template=False, explicit="chat_template")
  with pytest.raises(UserError) as caught:
    inheritance.check_same_prompts(stage, off, "init_from")
  assert "data.chat_template=True" in caught.value.problem
  assert "--data.chat_template" in caught.value.fix
  inheritance.check_same_prompts(
    stage, dataclasses.replace(DATA, user_tag="other"), "init_from"
  )


def test_a_second_model_of_other_prompts_is_refused(make):
  tokenizer = stage_model.open_stage(make("sft")).tokenizer
  other = dataclasses.replace(DATA, assistant_tag="Bot>")
  stage = stage_model.open_stage(make("reward", other))
  with pytest.raises(UserError) as caught:
    inheritance.require_compatible(stage, tokenizer, DATA, "ppo.reward_model")
  error = caught.value
  assert (error.code, error.field) == ("other_prompts", "ppo.reward_model")
  same = stage_model.open_stage(make("reward"))
  inheritance.require_compatible(same, tokenizer, DATA, "ppo.reward_model")
  longer = dataclasses.replace(DATA, max_prompt_tokens=23)
  with pytest.raises(UserError) as caught:
    inheritance.require_compatible(same, tokenizer, longer, "ppo.reward_model")
  assert caught.value.code == "short_context"


def evaluation(make, **data):
  return dataclasses.replace(
    run_from(make("sft"), presets.evaluate, [*data], **data),
    measure=configs.Measure(
      start=make("sft"),
      reward_model=make("reward"),
      judge=make("reward", dataclasses.replace(DATA, user_tag="Bot>")),
    ),
  )


def test_a_measurement_has_limits_that_fit_the_context(make, tmp_path):
  """The stage's limits fit, the preset's do not; others are refused."""
  asked = evaluation(make)
  assert asked.data.max_prompt_tokens > 32
  assert inheritance.inherit_architecture(asked).data.max_prompt_tokens == 20
  asked = inheritance.inherit_architecture(
    evaluation(make, max_response_tokens=13)
  )
  with pytest.raises(UserError) as caught:
    evaluate.run(asked, str(tmp_path))
  assert caught.value.field == "data.max_response_tokens"


def test_a_judge_of_other_prompts_is_refused(make, tmp_path):
  with pytest.raises(UserError) as caught:
    evaluate.run(
      inheritance.inherit_architecture(evaluation(make)), str(tmp_path)
    )
  assert caught.value.code == "other_prompts"
  assert caught.value.field == "measure.judge"
