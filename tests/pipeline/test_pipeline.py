"""Tests the whole pipeline in miniature, on the world and on files."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import types

import numpy as np
import pytest

from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import evaluate, judges
from instructgpt_jax.pipeline import evaluation as pipeline_evaluation
from instructgpt_jax.pipeline import stages
from instructgpt_jax.pipeline.workdir import Pipeline
from instructgpt_jax.runs import claims, files
from instructgpt_jax.training import stage_model
from instructgpt_jax.world import requests, words, write
from tests.pipeline.world import COMPILED, small

MODELS = ("base", "prompted", "sft", "best_of_n", "ppo", "ppo_ptx")
LEAVES = ("win_rate", "gold", "likert", "rm_score", "kl", "lm_loss")


def test_no_program_is_compiled_twice(world_run):
  """A stage compiles each program once for each shape, at its first step."""
  records = json.loads((pathlib.Path(world_run) / COMPILED).read_text())
  counts = {tuple(key): times for *key, times in records}
  programs = (
    "train_step", "score_rollout", "update", "token_logp", "token_scores",
    "count_pairs",
  )  # fmt: skip
  for (stage, name, shapes), times in counts.items():
    # Labeling and evaluation sample at several temperatures.
    if name in programs or (name, stage[:3]) == ("generate", "ppo"):
      assert times == 1, f"{stage} compiled {name} for {shapes} {times} times"
  shapes = collections.Counter((stage, name) for stage, name, _ in counts)
  for stage in ("pretrain", "policy_init", "sft"):
    assert shapes[stage, "train_step"] == 1
  for stage in ("probe_1", "ppo", "ppo_ptx"):
    assert shapes[stage, "update"] == shapes[stage, "score_rollout"] == 1
    assert shapes[stage, "generate"] == 1
  for stage in ("reward_1", "reward"):
    assert 1 <= shapes[stage, "train_step"] <= 4  # lengths that rows come in


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def report(folder):
  return files.read_json(pathlib.Path(folder) / "report.json")


def test_the_report_has_every_number_with_its_interval(world_run):
  results = report(world_run)
  assert set(results["models"]) == set(MODELS)
  for name in MODELS:
    greedy = results["models"][name]["greedy"]
    assert greedy["kl"] is None  # greedy answers are no sample of the model
    for part in (results["models"][name], greedy):
      for key in set(LEAVES) - ({"kl"} if part is greedy else set()):
        leaf = part[key]
        assert leaf["units"] > 0
        if leaf["low"] is None:  # a few prompts that do not differ
          assert leaf["high"] is None and leaf["units"] < 30, (name, key)
        else:
          assert leaf["low"] <= leaf["mean"] <= leaf["high"], (name, key)
      assert set(part["tasks"]) == {
        "translation", "reading", "sentiment", "facts",
      }  # fmt: skip
      assert part["likert"]["mean"] == pytest.approx(
        1 + 6 * part["gold"]["mean"]
      )
      assert "hallucination" in part["failures"]
  assert results["models"]["sft"]["win_rate"]["mean"] == 0.5
  assert (
    results["models"]["best_of_n"]["greedy"]
    == (results["models"]["sft"]["greedy"])
  )
  assert len(results["samples"]) == 5
  for sample in results["samples"]:
    assert set(sample["answers"]) == set(sample["model_prompts"]) == set(MODELS)
    prefixed = sample["model_prompts"].pop("prompted")
    # The world's tokenizer has no special tokens in a prompt.
    assert set(sample["model_prompts"].values()) == {sample["prompt"]}
    assert prefixed.endswith(sample["prompt"]) and prefixed != sample["prompt"]
  assert results["model"]["parameters"] > 1000
  assert {"pretrain", "sft", "reward", "ppo", "ppo_ptx"} <= set(
    results["curves"]
  )
  assert results["judge_kind"] == "gold"
  assert {"accuracy", "held_out_labelers"} <= set(results["reward_model"])


def test_every_stage_has_its_seconds(world_run):
  seconds = report(world_run)["seconds"]
  assert {
    "world", "pretrain", "policy_init", "reward_init", "labels_1", "reward_1",
    "sft",
    "probe_1", "labels_2", "reward", "ppo", "ppo_ptx", "evaluate",
  } == set(seconds)  # fmt: skip
  assert all(value > 0 for value in seconds.values())


def test_reward_models_start_from_public_comparisons(world_run, files_run):
  def start(directory, name):
    recorded = files.read_json(pathlib.Path(directory) / name / files.CONFIG)
    assert recorded["config"]["reward"]["epochs"] == 1
    return os.path.relpath(recorded["config"]["init_from"], directory)

  assert start(world_run, "reward_init") == "pretrain"
  assert start(world_run, "reward_1") == "reward_init"
  assert start(world_run, "reward") == "reward_init"
  assert start(files_run, "reward_init") == "policy_init"
  assert start(files_run, "reward") == "reward_init"
  assert start(files_run, "judge") == "policy_init"  # shares nothing more


def test_without_public_comparisons_there_is_no_such_stage(tmp_path):
  config = small(
    "world",
    **{
      "world.public_comparisons": 0,
      "reward.init_from": "policy_init",
      "labeling.rounds": 1,
      "until": "reward",
    },
  )
  stages.run(config, str(tmp_path))
  recorded = files.read_json(tmp_path / "reward" / files.CONFIG)
  assert recorded["config"]["init_from"] == str(tmp_path / "policy_init")
  assert not (tmp_path / "reward_init").exists()


def test_other_public_comparisons_than_before_are_refused(files_run, tmp_path):
  shutil.copytree(files_run, tmp_path / "run")
  config = files_config(tmp_path)
  public = tmp_path / "public.jsonl"
  public.write_text(public.read_text().replace("spell", "write"))
  with pytest.raises(UserError, match="reward_init.comparisons"):
    stages.run(config, str(tmp_path / "run"))


def test_public_comparisons_are_refused_by_their_flag(tmp_path):
  public = tmp_path / "public.jsonl"
  line = {"completions": ["a", "b"], "ranks": [1, 2]}
  public.write_text(
    "".join(
      json.dumps(line | {"prompt": f"{i} " + "word " * 500}) + "\n"
      for i in range(20)
    )
  )
  config = small("world", **{"reward_init.comparisons": str(public)})
  with pytest.raises(UserError) as caught:
    stages.run(config, str(tmp_path / "run"))
  assert caught.value.field == "reward_init.comparisons"
  assert str(tmp_path) in str(caught.value.file)


def test_the_page_is_one_file_and_the_table_is_printed(world_run, capsys):
  page = (pathlib.Path(world_run) / "report.html").read_text()
  assert "<svg" in page and "<script" not in page and "http-equiv" in page
  # A second run finds everything done, and prints the same table.
  before = {
    p: p.stat().st_mtime_ns
    for p in pathlib.Path(world_run).rglob("*")
    if p.is_file() and p.name not in ("seconds.json",)
  }
  stages.run(small("world"), world_run)
  output = capsys.readouterr()
  assert "PPO-ptx" in output.out and "report.html" in output.out
  assert output.err.count("already complete") == 9
  stage_files = [p for p in before if p.parent != pathlib.Path(world_run)]
  assert all(p.stat().st_mtime_ns == before[p] for p in stage_files)


def test_held_out_rankings_come_from_held_out_labelers(world_run):
  folder = pathlib.Path(world_run) / "rankings"
  mine, others = (
    lines(folder / "round_1.jsonl"),
    lines(folder / "round_1_held_out.jsonl"),
  )
  assert all(not r["labeler_id"].startswith("held_out") for r in mine)
  assert others and all(r["labeler_id"].startswith("held_out") for r in others)
  assert {r["split"] for r in mine} == {"train", "valid"}
  for r in mine:
    assert len(r["completions"]) == len(r["ranks"]) >= 2
    assert len(set(r["ranks"])) > 1
    assert all(c.strip() for c in r["completions"])


@pytest.fixture(scope="session")
def files_run(once):
  """Runs the pipeline on plain files."""
  return str(pathlib.Path(once("files_run", run_on_files)) / "run")


def run_on_files(folder):
  stages.run(files_config(folder), str(folder / "run"))


def files_config(folder):
  colours = "red green blue black white brown grey yellow".split()
  things = "boat house tree stone bird river cloud lamp".split()
  pairs = [(c, t) for c in colours for t in things]

  def write(name, records):
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records))
    return str(path)

  sources = {
    "data.pretraining": write(
      "text",
      [{"text": f"the {t} is {c} and the sky is {c} too. " * 3}
       for c, t in pairs],
    ),
    "data.demonstrations": write(
      "demonstrations",
      [{"prompt": f"say {c} {t}", "completion": f"{c} {t}"} for c, t in pairs],
    ),
    "data.comparisons": ",".join(
      write(
        name,
        [
          {
            "prompt": f"name the {c} {t}",
            "completions": [f"{c} {t}", f"{t}", "no"],
            "ranks": [1, 2, 3],
          }
          for c, t in part
        ],
      )
      + f":{weight}"
      for name, part, weight in (
        ("first", pairs[:40], 0.75),
        ("second", pairs[40:], 0.25),
      )
    ),
    "data.prompts": write(
      "prompts", [{"prompt": f"paint the {t} {c}"} for c, t in pairs]
    ),
    "reward_init.comparisons": write(
      "public",
      [
        {"prompt": f"spell {t}", "completions": [t, "no"], "ranks": [1, 2]}
        for t in things
      ],
    ),
  }  # fmt: skip
  more = {
    "tokenizer.vocab_size": 400,
    "data.max_prompt_tokens": 40,
    "data.max_response_tokens": 8,
    "model.max_seq_len": 64,
    "pretrain.sequence": 64,
    "ppo.ptx_sequence": 64,
    "reward.batch_size": 4,
    "evaluation.tasks": "lambada="
    + write("passages", [{"text": f"the {t} is {c}"} for c, t in pairs]),
    "evaluation.task_items": 5,
  }
  return small("tiny", **sources, **more)


def test_runs_on_files_are_judged_by_a_second_reward_model(files_run):
  results = report(files_run)
  assert results["judge_kind"] == "reward_model"
  assert "held-out rankings that the first never saw" in results["judge"]
  for name in MODELS:
    metrics = results["models"][name]
    assert metrics["gold"] is None and metrics["likert"] is None
    assert metrics["judge_score"]["low"] <= metrics["judge_score"]["high"]
    assert metrics["tasks"]["lambada"]["units"] == 5
  assert {"accuracy", "judge_accuracy"} <= set(results["reward_model"])


def test_the_judge_and_the_reward_model_share_no_prompt(files_run):
  directory = pathlib.Path(files_run) / "rankings"
  prompts = [
    {
      json.dumps(line["prompt"])
      for name in ("1_first", "2_second")
      for line in lines(directory / f"{role}_{name}.jsonl")
    }
    for role in ("reward", "judge")
  ]
  assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]


def test_both_are_trained_with_the_weights_of_the_rankings(files_run):
  for role in ("reward", "judge"):
    figures = report(files_run)["sources"][role]["data.comparisons"]
    assert [figure["weight"] for figure in figures] == [0.75, 0.25]
    assert [pathlib.Path(figure["source"]).name for figure in figures] == [
      f"{role}_1_first.jsonl",
      f"{role}_2_second.jsonl",
    ]
    assert figures[0]["rankings_share"] == pytest.approx(0.75, abs=0.03)


def test_tasks_are_checked_before_the_training(tmp_path):
  config = small("tiny", **{"evaluation.tasks": "lambada=none.jsonl"})
  with pytest.raises(UserError) as caught:
    stages.run(config, str(tmp_path))
  assert caught.value.file == "none.jsonl"
  assert not (tmp_path / "world").exists()


def test_one_missing_source_is_named(tmp_path):
  config = small("tiny", **{"data.prompts": "prompts.jsonl"})
  with pytest.raises(UserError, match="data.demonstrations"):
    stages.run(config, str(tmp_path))


def test_a_base_model_replaces_pretraining(world_run, tmp_path):
  base = str(pathlib.Path(world_run) / "pretrain")
  config = dataclasses.replace(small("world"), init_from=base)
  pipeline = Pipeline(config, str(tmp_path), has_gold=True)
  assert stages._run_pretrain(pipeline) == base
  assert not (tmp_path / "pretrain").exists()


def test_held_out_documents_fit_the_models_context(world_run):
  """The context of another base model may be shorter than the preset's rows."""
  config = small("world")
  paths = write.world_files(pathlib.Path(world_run) / "world")
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, prompts=paths.prompts, pretraining=paths.pretraining
    ),
    pretrain=dataclasses.replace(config.pretrain, sequence=4096),
  )
  names = ("policy_init", "reward")
  opened = {
    name: stage_model.open_stage(f"{world_run}/{name}") for name in names
  }
  evaluator = pipeline_evaluation._build_evaluator(
    config, str(world_run), opened, has_gold=True
  )
  max_seq_len = opened["policy_init"].model_config.max_seq_len
  assert evaluator.documents is not None
  assert evaluator.documents["tokens"].shape[1] == max_seq_len < 4096


def evaluation(world_run, model, **more):
  """Returns the config of `experiments.evaluate` on a stage of the run."""
  root = pathlib.Path(world_run)
  return flags.replace(
    presets.evaluate("world"),
    {
      "model.num_layers": 1,
      "model.d_model": 16,
      "init_from": str(root / model),
      "measure.start": str(root / "policy_init"),
      "measure.reward_model": str(root / "reward"),
      "measure.world": str(root / "world"),
      "measure.task_items": 5,
      "measure.rows": 16,
      "data.prompts": str(root / "world" / "prompts.jsonl"),
      "data.pretraining": str(root / "world" / "pretraining.jsonl"),
      "evaluation.prompts": 12,
      "evaluation.samples": 2,
      "evaluation.prefix_prompts": 6,
      "evaluation.best_of_n": 3,
    }
    | more,
  )


@pytest.fixture(scope="session")
def measured(world_run, once):
  config = evaluation(world_run, "ppo", **{"measure.samples_kept": 4})
  return pathlib.Path(
    once("measured", lambda folder: evaluate.run(config, str(folder)))
  )


def test_a_model_is_measured_prompt_by_prompt(measured, world_run):
  answers = files.read_json(measured / "answers.json")
  assert len(answers["prompts"]) == len(answers["families"]) == 12
  world = write.load_world(pathlib.Path(world_run) / "world")
  for part, samples in (("sampled", 2), ("greedy", 1), ("kept", 4)):
    for key in ("gold", "rm", *(["text"] if part != "kept" else [])):
      assert np.shape(answers[part][key]) == (12, samples)
    assert ("kl" in answers[part]) == (part == "sampled")
  assert set(answers["families"]) <= set(requests.FAMILIES)
  assert answers["families"][3] == (
    requests.parse(world, answers["prompts"][3]).family
  )
  assert len(answers["lm"]["nll"]) == len(answers["lm"]["weight"]) <= 16
  assert {k: len(v) for k, v in answers["tasks"].items()} == {
    "translation": 5, "reading": 5, "sentiment": 5, "facts": 5,
  }  # fmt: skip
  for task, rows in answers["task_answers"].items():
    main = [next(iter(row["scores"].values())) for row in rows]
    assert main == answers["tasks"][task]
  # The texts are those that were judged.
  judge = judges.GoldJudge(world)
  columns = (answers["greedy"][key] for key in ("text", "gold", "ended"))
  for prompt, texts, golds, ended in zip(
    answers["prompts"], *columns, strict=True
  ):
    rollout = types.SimpleNamespace(ended=ended)
    scores = judge([prompt], texts, rollout).scores
    assert scores == pytest.approx(golds, abs=1e-4)
  assert all(0 <= bits <= 1 for bits in answers["bias"])


def test_the_summary_has_the_means_of_the_answers(measured):
  answers = files.read_json(measured / "answers.json")
  means = files.read_complete(measured) or {}
  assert means["prompts"] == 12
  assert "kl" in means and "greedy_kl" not in means
  assert means["gold"] == pytest.approx(np.mean(answers["sampled"]["gold"]))
  assert means["lm_loss"] == pytest.approx(
    np.sum(answers["lm"]["nll"]) / np.sum(answers["lm"]["weight"])
  )
  assert means["best_of_1"] == pytest.approx(np.mean(answers["kept"]["gold"]))
  assert {"best_of_2", "best_of_4", "bias_entropy", "translation"} <= set(means)


def test_the_start_has_no_distance_from_itself(world_run, tmp_path):
  evaluate.run(
    evaluation(
      world_run, "policy_init", **{"measure.task_items": 0, "measure.rows": 0}
    ),
    str(tmp_path),
  )
  answers = files.read_json(tmp_path / "answers.json")
  assert abs(np.asarray(answers["sampled"]["kl"])).max() < 1e-3
  assert "lm" not in answers and "tasks" not in answers


def test_a_filtered_answer_is_a_refusal(world_run, tmp_path):
  """Every answer of an untrained model contains a word of the vocabulary."""
  words_ = "|".join((*words.CONTENT, ".", ",", "the", "is", "i", "a"))
  more = {"measure.filter": words_, "measure.task_items": 0}
  evaluate.run(evaluation(world_run, "pretrain", **more), str(tmp_path))
  answers = files.read_json(tmp_path / "answers.json")
  refused = [
    gold for gold, family in zip(
      answers["sampled"]["gold"], answers["families"], strict=True
    ) if family == "harmful"
  ]  # fmt: skip
  assert np.shape(answers["sampled"]["gold"]) == (12, 1)
  assert all(gold == [1.0] for gold in refused)
  assert np.mean(answers["sampled"]["ended"]) > 0.8


def test_a_prefix_can_be_chosen_by_the_reward_model(world_run, tmp_path):
  more = {"measure.prefix": "auto", "measure.rows": 0}
  evaluate.run(evaluation(world_run, "pretrain", **more), str(tmp_path))
  answers = files.read_json(tmp_path / "answers.json")
  assert answers["prefix"] in words.PREFIXES


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"init_from": ""}, "init_from"),
    ({"measure.start": ""}, "measure.start"),
    ({"measure.world": ""}, "measure.judge"),
    ({"measure.reward_model": "policy_init"}, "no such directory"),
  ],
)
def test_a_missing_part_of_a_measurement_is_named(
  world_run, tmp_path, change, message
):
  with pytest.raises(UserError, match=message):
    evaluate.run(evaluation(world_run, "ppo", **change), str(tmp_path))


def test_a_judge_replaces_the_world(files_run, tmp_path):
  root = pathlib.Path(files_run)
  data = report(files_run)["config"]["data"]
  more = {
    "measure.world": "",
    "measure.judge": str(root / "judge"),
    **{f"data.{k}": v for k, v in data.items()},
  }
  evaluate.run(evaluation(files_run, "ppo", **more), str(tmp_path))
  answers = files.read_json(tmp_path / "answers.json")
  assert set(answers["families"]) == {""}
  assert np.ptp(answers["sampled"]["gold"]) > 0


def test_a_pipeline_stops_after_the_named_stage_and_resumes(tmp_path):
  directory = str(tmp_path)
  config = small("world", until="pretrain")
  claims.claim_workdir(directory, "pipeline", flags.config_to_dict(config))
  stages.run(config, directory)
  assert files.read_complete(directory) == {"until": "pretrain"}
  assert not (tmp_path / "policy_init").exists()
  further = small("world", until="policy_init")
  claims.claim_workdir(directory, "pipeline", flags.config_to_dict(further))
  stages.run(further, directory)
  assert files.read_complete(tmp_path / "policy_init") is not None
  with pytest.raises(UserError, match="--seed"):
    other = small("world", seed=1)
    claims.claim_workdir(directory, "pipeline", flags.config_to_dict(other))
