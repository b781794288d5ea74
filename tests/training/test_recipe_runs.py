"""Stages run with nothing but a model and data, one after the other."""

import json

import pytest

from tests.training import hub, results, toy

RUN = (*toy.RUN, "--run.save_every=none")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  path = tmp_path_factory.mktemp("recipe_runs")
  hub.make(path / "hf", "llama")
  return path


def run(stages, base, name, start, *more, **options):
  flags = [*RUN, *toy.sources(stages.data, *toy.READS[name])]
  return stages.run(
    name,
    *flags,
    f"--init_from={base / start}",
    f"--workdir={base / name}",
    *more,
    **options,
  )


def config_of(path):
  return json.loads((path / "config.json").read_text())["config"]


def test_sft_reward_and_ppo_without_a_preset(stages, base):
  done = run(stages, base, "sft", "hf")
  assert done.status == 0, done.err
  losses = [m["loss"] for m in results.metrics(base / "sft") if "loss" in m]
  assert losses
  again = run(stages, base, "sft", "hf")
  assert again.status == 0, again.err
  for name, start, more in (
    ("reward", "sft", ()),
    (
      "ppo",
      "sft",
      (f"--ppo.reward_model={base / 'reward'}", "--ppo.episodes=16"),
    ),
  ):
    done = run(stages, base, name, start, *more)
    assert done.status == 0, done.err
  sft, ppo = config_of(base / "sft"), config_of(base / "ppo")
  limit = "max_response_tokens"
  assert ppo["data"][limit] == sft["data"][limit]
  assert ppo["optimizer"]["learning_rate"] == 1e-5
  assert ppo["ppo"]["rollout_batch"] == 16
  refused = run(stages, base, "sft", "hf", "--sft.epochs=9")
  assert refused.status == 2
  assert "--sft.epochs=" in refused.err
