"""Conversations as texts: by a template, by a stage's tags, or not at all."""

import types

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.chat_format import ChatFormat

TURNS = [Turn("system", "Be short."), Turn("user", "Who?")]
NO_TEMPLATE = types.SimpleNamespace(template=None)


def make_stage(**settings):
  stage = {
    "path": "run",
    "tokenizer": NO_TEMPLATE,
    "data": configs.Data(),
    "source": None,
    "has_prompts": True,
  }
  return types.SimpleNamespace(**stage | settings)


def test_a_stage_without_a_template_writes_its_tags():
  written = ChatFormat.of_stage(make_stage())
  text = written.write(TURNS, reply_follows=True)
  assert text == "Be short.\n\nHuman: Who?\n\nAssistant:"
  begun = [*TURNS, Turn("assistant", "The fox")]
  assert written.write(begun, reply_follows=False) == f"{text} The fox"


@pytest.mark.parametrize(
  "settings", [{"has_prompts": False}, {"source": object()}]
)
def test_a_base_model_and_a_foreign_one_have_no_tags(settings):
  written = ChatFormat.of_stage(make_stage(**settings))
  with pytest.raises(UserError) as caught:
    written.write(TURNS, reply_follows=True)
  assert (caught.value.code, caught.value.file) == ("no_chat_template", "run")


def test_a_template_has_the_date_of_the_stage():
  dates = []
  template = types.SimpleNamespace(
    render=lambda turns, reply_follows, date: dates.append(date) or "text"
  )
  data = configs.Data(template_date="2024-05-06")
  tokenizer = types.SimpleNamespace(template=template)
  stage = make_stage(tokenizer=tokenizer, data=data)
  for written in (ChatFormat.of_stage(stage), ChatFormat(tokenizer)):
    assert written.write(TURNS, reply_follows=True) == "text"
  assert dates == ["2024-05-06", configs.Data().template_date]
