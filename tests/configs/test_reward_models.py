"""An ensemble's models and settings fit together, before anything is opened."""

import dataclasses

import pytest

from instructgpt_jax import configs
from instructgpt_jax.configs import checks, presets
from instructgpt_jax.errors import UserError

DEVIATION = {"reward_ensemble": "mean_minus_deviation"}


@pytest.mark.parametrize(
  ("settings", "code", "field"),
  [
    ({"reward_model": "a,b"}, "no_ensemble", "ppo.reward_model"),
    ({"reward_model": "a", "reward_ensemble": "mean"}, "one_reward_model",
     "ppo.reward_ensemble"),
    ({"reward_ensemble": "worst"}, "one_reward_model", "ppo.reward_ensemble"),
    ({"reward_model": "a,b,a", "reward_ensemble": "worst"},
     "bad_reward_models", "ppo.reward_model"),
    ({"reward_model": "a,,b", "reward_ensemble": "worst"},
     "bad_reward_models", "ppo.reward_model"),
    ({"reward_model": "a, ", "reward_ensemble": "worst"},
     "bad_reward_models", "ppo.reward_model"),
    ({"reward_model": "a,b", "reward_ensemble": "worst",
      "reward_deviation_coef": 2.0},
     "unused_coefficient", "ppo.reward_deviation_coef"),
    ({"reward_model": "a", "reward_deviation_coef": 2.0},
     "unused_coefficient", "ppo.reward_deviation_coef"),
  ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings, code, field):
  with pytest.raises(UserError) as error:
    checks.check_reward_models(configs.Ppo(**settings), "ppo")
  assert (error.value.code, error.value.field) == (code, field)


@pytest.mark.parametrize(
  ("settings", "models", "coef"),
  [
    ({}, (), 1.0),
    ({"reward_model": "a"}, ("a",), 1.0),
    ({"reward_model": "a,b", "reward_ensemble": "mean"}, ("a", "b"), 1.0),
    ({"reward_model": "a,b", **DEVIATION}, ("a", "b"), 1.0),
    ({"reward_model": "a,b", **DEVIATION, "reward_deviation_coef": 0.5},
     ("a", "b"), 0.5),
  ],
)  # fmt: skip
def test_settings_that_fit(settings, models, coef):
  for section in (configs.Ppo(**settings), configs.Measure(**settings)):
    checks.check_reward_models(section, "ppo")
    assert section.reward_models == models
    assert section.deviation_coef == coef


def test_a_pipeline_has_no_ensemble():
  config = presets.pipeline("tiny")
  section = dataclasses.replace(
    config.ppo, reward_model="a,b", reward_ensemble="worst"
  )
  config = dataclasses.replace(config, ppo=section)
  with pytest.raises(UserError) as error:
    checks.check_pipeline(config, config.model.max_seq_len)
  assert error.value.code == "one_reward_model"


def test_an_unknown_ensemble_is_refused():
  with pytest.raises(UserError) as error:
    configs.Ppo(reward_ensemble="median")
  assert error.value.code == "not_allowed"
