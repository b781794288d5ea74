"""More rankings of a pipeline's models, and what models read in them."""

import collections
import dataclasses
import itertools
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import reward_pairs
from instructgpt_jax.models import heads
from instructgpt_jax.pipeline import labels, rankings, stages
from instructgpt_jax.runs import files
from instructgpt_jax.training import stage_model, tokenizer_store
from instructgpt_jax.world import gold, labelers, write
from tests.pipeline.world import SMALL, small


def read_lines(path):
  text = pathlib.Path(path).read_text()
  return [json.loads(line) for line in text.splitlines()]


def labels_config(pipeline, **changes):
  config = presets.labels("world")
  sizes = {
    name: value
    for name, value in SMALL.items()
    if name.startswith("labeling.") and configs.experiment_field(name, "labels")
  }
  return flags.replace(config, sizes | {"pipeline": pipeline} | changes)


def test_the_pipelines_own_settings_repeat_its_rankings(world_run, tmp_path):
  labels.run(labels_config(world_run), str(tmp_path))
  names = [f"round_{i}{end}.jsonl" for i in (1, 2) for end in ("", "_held_out")]
  for name in names:
    expected = pathlib.Path(world_run, "rankings", name).read_text()
    assert (tmp_path / name).read_text() == expected
  counts = files.read_complete(tmp_path)
  assert counts is not None and 0 < counts["round_2_train"] <= 16


def test_prompts_repeat_and_ratings_without_noise_are_tastes(
  world_run, tmp_path, monkeypatch
):
  """The answers are given: what is tested is who rates them, and how."""
  texts = ["i do not know .", "yes .", "i do not know .", "you fool ."]
  asked = []

  def answer(config, models, turns, number):
    asked.extend(turn[-1].text for turn in turns)
    return [[(text, True) for text in texts] for _ in turns]

  monkeypatch.setattr(rankings, "_sample_completions", answer)
  config = labels_config(
    world_run,
    **{
      "labeling.prompts": 130,
      "labeling.rounds": 1,
      "labeling.noise": 0.0,
    },
  )
  labels.run(config, str(tmp_path))
  world = write.load_world(f"{world_run}/world")
  lines = read_lines(tmp_path / "round_1.jsonl")
  pool = {
    prompt["prompt"]
    for prompt in read_lines(f"{world_run}/world/prompts.jsonl")
    if prompt["split"] == "train"
  }
  times = collections.Counter(text for text in asked if text in pool)
  assert len(times) == len(pool) < 100 and sum(times.values()) == 130
  assert max(times.values()) - min(times.values()) <= 1
  for line in lines:
    prompt = line["prompt"][0]["content"]
    labeler = labelers.LABELERS[line["labeler_id"]]
    for text, grade in zip(line["completions"], line["grades"], strict=True):
      form = gold.label(prompt, text, world=world)
      meant = round(labelers.taste(labeler, form))
      assert grade == min(7, max(1, meant))
    for (a, ra), (b, rb) in itertools.combinations(
      zip(line["grades"], line["ranks"], strict=True), 2
    ):
      assert np.sign(a - b) == np.sign(rb - ra)


def test_the_default_noise_is_the_labelers_own():
  assert configs.Labeling().noise == labelers.NOISE


def test_only_a_pipeline_on_the_world_has_labelers(tmp_path):
  for pipeline in ("", str(tmp_path)):
    with pytest.raises(UserError) as caught:
      labels.run(labels_config(pipeline), str(tmp_path / "run"))
    assert (caught.value.code, caught.value.field) == (
      "no_pipeline", "pipeline",
    )  # fmt: skip


def test_more_rounds_than_the_pipeline_has_are_refused(tmp_path):
  world = pathlib.Path(write.world_files(tmp_path / "world").world)
  world.parent.mkdir()
  world.touch()
  config = {"config": {"labeling": {"rounds": 1}}}
  (tmp_path / files.CONFIG).write_text(json.dumps(config))
  with pytest.raises(UserError) as caught:
    labels.run(labels_config(str(tmp_path)), str(tmp_path / "run"))
  assert caught.value.code == "missing_round"
  assert caught.value.field == "labeling.rounds"
  assert "--labeling.rounds=1" in caught.value.fix


@pytest.mark.parametrize("shares", [(1, 1, 4), (1, 2, 3)])
def test_a_prompt_has_as_many_completions_as_asked_for(shares):
  for total in range(1, 12):
    counts = rankings.divide_completions(total, shares)
    assert sum(counts) == total and min(counts) >= 0
    assert (min(counts) > 0) == (total >= len(shares))
    by_share = sorted(zip(shares, counts, strict=True))
    assert [n for _, n in by_share] == sorted(counts)


def pairs_config(world_run, model, **changes):
  rounds = ",".join(
    f"{world_run}/rankings/round_{number}.jsonl" for number in (1, 2)
  )
  return flags.replace(
    presets.reward_pairs("world"),
    {
      "init_from": f"{world_run}/{model}",
      "pairs.world": f"{world_run}/world",
      "pairs.held_out": rounds,
      "data.comparisons": rounds,
    }
    | changes,
  )


def total(counts, field):
  return sum(counts[field])


def test_pairs_are_counted_as_the_reward_stage_counts_them(world_run, tmp_path):
  reward_pairs.run(pairs_config(world_run, "reward"), str(tmp_path))
  result = files.read_json(tmp_path / reward_pairs.PAIRS)
  (parts,) = result.values()
  held_out, everything = parts["held_out"], parts["held_out"]["all"]
  expected = files.read_json(f"{world_run}/reward/held_out.json")["pairs"]
  assert everything["pairs"] == expected["pairs"]
  np.testing.assert_allclose(everything["correct"], expected["correct"])
  # Each kind of group divides all pairs.
  for kind in ("family", "source", "differs in", "gold"):
    groups = [counts for name, counts in held_out.items()
              if name.startswith(f"{kind} ")]  # fmt: skip
    for field in reward_pairs.FIELDS:
      summed = np.sum([counts[field] for counts in groups], axis=0)
      np.testing.assert_allclose(summed, everything[field])
  world = write.load_world(f"{world_run}/world")
  ceiling = 0.0
  for number in (1, 2):
    for line in read_lines(f"{world_run}/rankings/round_{number}.jsonl"):
      if line["split"] != "valid":
        continue
      prompt = line["prompt"][0]["content"]
      # Of at most 24 tokens, with the one that ends it.
      scores = [
        gold.label(prompt, text, len(text.split()) < 24, world=world).score
        for text in line["completions"]
      ]
      for i, j in itertools.permutations(range(len(scores)), 2):
        if line["ranks"][i] < line["ranks"][j]:
          ceiling += 0.5 * (1 + np.sign(round(scores[i] - scores[j], 9)))
  assert total(everything, "ceiling") == pytest.approx(ceiling)
  train = read_lines(f"{world_run}/rankings/round_1.jsonl")
  assert len(parts["train"]["all"]["pairs"]) >= len(
    {line["prompt"][0]["content"] for line in train if line["split"] == "train"}
  )


def test_an_ensemble_is_measured_beside_its_first_model(
  world_run, tmp_path, monkeypatch
):
  generator, scores, graded = np.random.default_rng(0), [], []
  grade_rankings = reward_pairs.grade_rankings

  def score(network, params, examples, mesh):
    scores.append(generator.normal(size=len(examples)).astype(np.float32))
    return scores[-1]

  def grade(*arguments):
    graded.extend(grade_rankings(*arguments))
    return graded

  monkeypatch.setattr(reward_pairs.scoring, "score", score)
  monkeypatch.setattr(reward_pairs, "grade_rankings", grade)
  others = f"{world_run}/reward_1,{world_run}/reward_init"
  config = pairs_config(
    world_run,
    "reward",
    **{"data.comparisons": "", "pairs.ensemble": others},
  )
  reward_pairs.run(config, str(tmp_path))
  result = files.read_json(tmp_path / reward_pairs.PAIRS)
  members = np.stack(scores)
  assert len(members) == 3
  combined = {
    "model": members[0],
    "ensemble: mean": members.mean(axis=0),
    "ensemble: worst": members.min(axis=0),
    "ensemble: mean_minus_deviation": members.mean(axis=0)
    - members.std(axis=0),
  }
  ends = np.cumsum([len(ranking.ranks) for ranking in graded])[:-1]
  assert result == {
    name: {"held_out": reward_pairs.count_pairs(graded, np.split(values, ends))}
    for name, values in combined.items()
  }
  summary = files.read_complete(tmp_path) or {}
  assert "ensemble: worst_held_out_correct" in summary


@pytest.mark.parametrize(
  "model, ensemble, code",
  [
    ("pretrain", "reward", "no_reward_model"),
    ("reward", "reward", "bad_reward_models"),
    ("reward", "reward_1,", "bad_reward_models"),
    ("reward", "pretrain", "other_kind"),
  ],
)
def test_an_ensemble_has_different_reward_models(
  world_run, tmp_path, model, ensemble, code
):
  paths = [name and f"{world_run}/{name}" for name in ensemble.split(",")]
  config = pairs_config(world_run, model, **{"pairs.ensemble": ",".join(paths)})
  with pytest.raises(UserError) as caught:
    reward_pairs.run(config, str(tmp_path))
  assert (caught.value.code, caught.value.field) == (code, "pairs.ensemble")


def test_a_language_model_is_probed(world_run, tmp_path):
  reward_pairs.run(pairs_config(world_run, "pretrain"), str(tmp_path))
  result = files.read_json(tmp_path / reward_pairs.PAIRS)
  assert set(result) == {"labels", "gold", "surface", "claims"}
  fitted = {
    name: total(parts["train"]["all"], "correct")
    for name, parts in result.items()
  }
  # 16 weights fit a few pairs' labels better than other ones do.
  assert fitted["labels"] > fitted["gold"]
  pairs = total(result["labels"]["train"]["all"], "pairs")
  assert fitted["labels"] > 0.6 * pairs
  config = pairs_config(world_run, "pretrain", **{"data.comparisons": ""})
  with pytest.raises(UserError) as caught:
    reward_pairs.run(config, str(tmp_path / "other"))
  assert caught.value.code == "no_rankings"


@pytest.mark.parametrize(
  "field", ["init_from", "pairs.world", "pairs.held_out"]
)
def test_what_is_measured_has_to_be_named(world_run, tmp_path, field):
  config = pairs_config(world_run, "reward", **{field: ""})
  with pytest.raises(UserError) as caught:
    reward_pairs.run(config, str(tmp_path))
  assert caught.value.field == field


@pytest.mark.parametrize(
  "a, b, kind, gap",
  [
    ({}, {}, "nothing", "equal"),
    ({"gold": 0.3, "content": 0.3}, {}, "content", "0.6 or more"),
    ({"gold": 0.95, "padding": 1}, {}, "padding", "below 0.1"),
    ({"gold": 0.9, "padding": 2}, {}, "padding", "0.1 to 0.3"),
    ({"gold": 0.4, "insult": (True, False)}, {}, "insult", "0.6 or more"),
    ({"gold": 0.7, "end": (False, False)}, {}, "end", "0.3 to 0.6"),
    ({"gold": 0.6, "content": 0.7, "padding": 2}, {}, "several", "0.3 to 0.6"),
    ({"gold": 0.0, "content": 0.0, "declines": True, "padding": 2}, {},
     "refusal", "0.6 or more"),
  ],
)  # fmt: skip
def test_pairs_are_sorted_by_what_differs(a, b, kind, gap):
  best = reward_pairs.Reply(1.0, False, 1.0, 0, (False, False), (True, False))
  first, second = best._replace(**a), best._replace(**b)
  for pair in ((first, second), (second, first)):
    assert reward_pairs.difference(*pair) == kind
    assert reward_pairs.gap(*pair) == gap


def make_larger(world_run, directory):
  """Writes a model of twice the width, with the pipeline's tokenizer."""
  policy = stage_model.open_stage(f"{world_run}/policy_init")
  model = dataclasses.replace(policy.model_config, d_model=32)
  params = heads.init_params(heads.LanguageModel(model), jax.random.key(0))
  tokenizer_store.put_tokenizer(directory, policy.tokenizer)
  stage_model.save_stage_model(
    directory, params, kind=stage_model.LANGUAGE, model=model,
    data=policy.data, stage="policy_init", step=0,
  )  # fmt: skip
  files.mark_complete(directory, {})


def test_a_reward_model_may_be_larger_than_the_policy(world_run, tmp_path):
  larger = str(tmp_path / "larger")
  make_larger(world_run, larger)
  config = small(
    "world",
    **{
      "init_from": os.path.join(world_run, "pretrain"),
      "reward.init_from": larger,
      "data.explicit": "model.d_model",  # that of the policy
      "reward.margin": "grade",
      "reward.label_smoothing": 0.1,
      "labeling.rounds": 1,
      "until": "reward",
    },
  )
  stages.run(config, str(tmp_path / "run"))
  widths = {
    name: stage_model.open_stage(str(tmp_path / "run" / name)).model_config
    for name in ("policy_init", "reward")
  }
  assert {name: model.d_model for name, model in widths.items()} == {
    "policy_init": 16,
    "reward": 32,
  }


def test_a_start_of_the_reward_model_that_is_missing_ends_at_once(tmp_path):
  config = small("world", **{"reward.init_from": str(tmp_path / "none")})
  with pytest.raises(UserError) as caught:
    stages.run(config, str(tmp_path / "run"))
  assert caught.value.field == "reward.init_from"
  assert not (tmp_path / "run" / "world").exists()
