"""Answers to fixed validation prompts during SFT and PPO."""

import json

import numpy as np
import pytest

from instructgpt_jax.training import ppo_collapse
from instructgpt_jax.types import Rollout
from tests.training import exact, results, toy

SFT = ("--sft.samples_every=5", "--sft.sample_prompts=4")
PPO = ("--ppo.samples_every=5", "--ppo.sample_prompts=3")


def read(path):
  text = (path / "samples.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def steps(rows):
  return sorted({row["step"] for row in rows})


def question(row):
  """Returns the user's text in the prompt of a sample."""
  return row["prompt"].removeprefix("U: ").removesuffix(" A:")


@pytest.fixture(scope="module")
def sampled_sft(stages, tmp_path_factory):
  path = tmp_path_factory.mktemp("sft")
  done = stages.run(
    "sft",
    *stages.flags("sft"),
    *SFT,
    "--sft.select_by=last",
    f"--sft.reward_model={stages['reward']}",
    f"--workdir={path}",
  )
  assert done.status == 0, done.err
  return path


@pytest.fixture(scope="module")
def sampled_ppo(stages, tmp_path_factory):
  path = tmp_path_factory.mktemp("ppo")
  done = stages.run("ppo", *stages.flags("ppo"), *PPO, f"--workdir={path}")
  assert done.status == 0, done.err
  return path


def test_samples_change_no_number_of_the_training(
  sampled_sft, sampled_ppo, stages
):
  def losses(path):
    return [row for row in results.metrics(path) if "loss" in row]

  assert losses(sampled_sft) == losses(stages["sft"])
  results.assert_same_run(sampled_ppo, stages["ppo"])


def test_the_same_prompts_are_answered_at_each_interval(
  sampled_sft, sampled_ppo, stages
):
  for path, name, count, per_iteration in (
    (sampled_sft, "demonstrations", 4, 0),
    (sampled_ppo, "prompts", 3, 2),
  ):
    rows = read(path)
    total = results.metrics(path)[-1]["step"]
    every = 5 * (per_iteration or 1)
    assert steps(rows) == sorted({*range(0, total + 1, every), total})
    valid = {
      record["prompt"]
      for record in map(
        json.loads, (stages.data / f"{name}.jsonl").read_text().splitlines()
      )
      if record["split"] == "valid"
    }
    first = [row["prompt"] for row in rows if row["step"] == 0]
    assert len(first) == count
    for step in steps(rows):
      chosen = [row for row in rows if row["step"] == step]
      assert [row["prompt"] for row in chosen] == first
      assert [row["index"] for row in chosen] == list(range(count))
    assert {question(row) for row in rows} <= valid
    for row in rows:
      if per_iteration:
        assert row["iteration"] * per_iteration == row["step"]
      else:
        assert "iteration" not in row and "kl" not in row
      assert row["stop_reason"] in ("end", "limit")
      assert 1 <= row["length"] <= 6
      assert row["stop_reason"] == "end" or row["length"] == 6
  # The policy changes, so its answers do.
  texts = [r["response"] for r in read(sampled_sft)]
  assert len(set(texts)) > 4


def test_reward_and_kl_are_those_of_the_whole_texts(
  sampled_ppo, sampled_sft, stages
):
  reward = exact.Finished(stages["reward"])
  policy, start = exact.Finished(sampled_ppo), exact.Finished(stages["sft"])
  last = results.metrics(sampled_ppo)[-1]["step"]
  rows = [r for r in read(sampled_ppo) if r["stop_reason"] == "end"]
  assert rows
  for row in rows[:6] + read(sampled_sft)[-3:]:
    if row["stop_reason"] == "limit":
      continue
    text = question(row)
    score = reward.score(text, row["response"])
    assert row["reward"] == pytest.approx(score, abs=1e-4)
  for row in (r for r in read(sampled_ppo) if r["step"] == 0):
    assert row["kl"] == pytest.approx(0, abs=1e-5)
  for row in rows:
    if row["step"] == last:
      text, reply = question(row), row["response"]
      logp, ref_logp = (
        -model.token_losses(text, reply)[1].sum() for model in (policy, start)
      )
      assert row["kl"] == pytest.approx(logp - ref_logp, abs=1e-4)


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_killed_run_has_each_sample_once(
  name, sampled_sft, sampled_ppo, stages, tmp_path
):
  straight, flags = {
    "sft": (
      sampled_sft,
      [
        *SFT,
        "--sft.select_by=last",
        f"--sft.reward_model={stages['reward']}",
      ],
    ),
    "ppo": (sampled_ppo, PPO),
  }[name]
  command = [f"experiments.{name}", *stages.flags(name), *flags]
  command.append(f"--workdir={tmp_path / 'run'}")
  for share in (0.1, 0.6):  # before and after the first checkpoint
    child = stages.server.start(*command)
    count = int(share * results.lines(straight))
    assert results.kill_after(child, tmp_path / "run", count).status == -9
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  resumed = (tmp_path / "run" / "samples.jsonl").read_bytes()
  assert resumed == (straight / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_without_validation_prompts_samples_are_refused(name, stages, tmp_path):
  kind = toy.READS[name][0]
  lines = [
    json.loads(line) | {"split": "train"}
    for line in (stages.data / f"{kind}.jsonl").read_text().splitlines()
  ]
  path = toy.write_lines(tmp_path / "all.jsonl", lines)
  done = stages.run(
    name,
    *(f for f in stages.flags(name) if not f.startswith(f"--data.{kind}=")),
    f"--data.{kind}={path}",
    *(SFT if name == "sft" else PPO),
    f"--workdir={tmp_path / 'run'}",
  )
  assert (done.status, done.out) == (2, "")
  assert f"[{name}.samples_every]" in done.err
  assert not results.snapshot(tmp_path / "run")


def test_responses_are_counted_once_if_they_are_equal():
  tokens = np.array([[1, 5, 6, 0], [2, 5, 6, 9], [3, 5, 7, 0], [4, 5, 0, 0]])
  mask = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
  rollout = Rollout(
    tokens=tokens,
    segments=None,
    positions=None,
    response_mask=mask,
    logp=None,
    ended=None,
  )
  assert ppo_collapse.distinct_share(rollout) == 3 / 4
