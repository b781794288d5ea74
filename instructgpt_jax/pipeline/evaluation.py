"""Measures all models of a pipeline on held-out prompts, for its report."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from instructgpt_jax import configs, sharding, statistics
from instructgpt_jax.cli import flags
from instructgpt_jax.data import records
from instructgpt_jax.evaluation import setup
from instructgpt_jax.evaluation.evaluator import (
  Answers,
  Evaluator,
  Model,
  load_model,
)
from instructgpt_jax.evaluation.group_intervals import grouped_interval
from instructgpt_jax.evaluation.tasks import registry
from instructgpt_jax.evaluation.tasks.registry import Questions
from instructgpt_jax.models import heads
from instructgpt_jax.pipeline import rankings
from instructgpt_jax.report import curves, training_samples
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import language, stage_model
from instructgpt_jax.training import reward as reward_loop

# Candidate prefixes for real data; the world defines other ones.
PREFIXES = (
  "Below, a helpful assistant answers questions truthfully and politely.",
  "The assistant follows instructions carefully and does not make things up.",
  "A conversation with an expert who gives short, correct answers.",
  "Every reply does exactly what was asked, and nothing else.",
)
CURVES = {
  "pretrain": ("loss", "valid_loss"),
  "policy_init": ("loss", "valid_loss"),
  "sft": ("loss", "valid_loss", "valid_rm_score"),
  "reward": ("loss", "accuracy"),
  **dict.fromkeys(
    ("ppo", "ppo_ptx"),
    (
      "reward",
      "kl",
      "entropy",
      "clip_fraction",
      "explained_variance",
      "response_length",
      "ptx_loss",
    ),
  ),
}
SAMPLES = 5
_SPLIT_NAMES = {
  "test": "held-out",
  "valid": "validation",
  "train": "training (not held-out)",
}
_GREEDY = "greedy"
_PROMPTED = "prompted"  # the base model after a prefix


def _build_evaluator(
  config: configs.PipelineExperiment,
  directory: str,
  stages: Mapping[str, stage_model.Stage],
  *,
  has_gold: bool,
) -> Evaluator:
  root = pathlib.Path(directory)
  start = stages["policy_init"]
  evaluator = setup.build_evaluator(
    config,
    tokenizer=start.tokenizer,
    start=start,
    rewards=[stages["reward"]],
    judge=None if has_gold else stage_model.open_stage(str(root / "judge")),
    world=str(root / "world") if has_gold else "",
  )
  max_seq_len = start.model_config.max_seq_len
  return dataclasses.replace(
    evaluator,
    prefixes=evaluator.prefixes or PREFIXES,
    tasks=[*evaluator.tasks, *read_tasks(config)],
    documents=setup.held_out_rows(
      config.data,
      start.tokenizer,
      min(config.pretrain.sequence or max_seq_len, max_seq_len),
      split=config.evaluation.split,
      max_rows=documents_lib.VALID_ROWS,
    ),
  )


def read_tasks(config: configs.PipelineExperiment) -> list[Questions]:
  """Reads the public tasks that the models are measured on.

  Raises:
    UserError: the list is malformed, or a file is.
  """
  section = config.evaluation
  return registry.read_tasks(
    section.tasks, section.task_items, config.seed, "evaluation.tasks"
  )


def _summarize(
  evaluator: Evaluator, answers: Answers, sft: Answers, *, greedy: bool
) -> dict[str, Any]:
  """Returns the report's numbers of one model at one temperature.

  Greedy answers have no KL: they are not a sample of the model, and the mean of
  log model − log start over them estimates nothing.
  """
  resamples = evaluator.settings.bootstrap

  def interval(values: np.ndarray, *, share: bool = False) -> dict[str, Any]:
    return statistics.bootstrap_interval(
      answers.group_by_prompt(values), resamples=resamples, share=share
    ).as_dict()

  judgement, rollout = answers.judgement, answers.rollout
  wins = statistics.win_rate(
    answers.group_by_prompt(judgement.scores),
    sft.group_by_prompt(sft.judgement.scores),
  )
  gold = evaluator.judge.kind == "gold"
  win_rate = statistics.bootstrap_interval(
    wins, resamples=resamples, share=True
  ).as_dict()
  if answers is sft:  # every answer ties with itself
    win_rate |= {"low": 0.5, "high": 0.5}
  likert = judgement.likert
  return {
    "win_rate": win_rate,
    "gold": interval(judgement.scores, share=True) if gold else None,
    "judge_score": None if gold else interval(judgement.scores),
    "likert": None if likert is None else interval(likert),
    "rm_score": interval(answers.rm_scores),
    "kl": None if greedy else interval(answers.kl),
    "response_length": interval(np.asarray(rollout.response_mask).sum(1)),
    "ended": interval(np.asarray(rollout.ended), share=True),
    "failures": {
      k: interval(v, share=True) for k, v in judgement.failures.items()
    },
  }


def evaluate(
  config: configs.PipelineExperiment,
  directory: str,
  stages: Mapping[str, str],
  *,
  has_gold: bool,
) -> dict[str, Any]:
  """Measures all models of a pipeline.

  Args:
    config: the pipeline's config, with the data that the stages used.
    directory: the pipeline's workdir.
    stages: workdirs of base, policy_init, sft, ppo, ppo_ptx and reward.
    has_gold: whether the world's gold labeler judges.

  Returns:
    Results as `report.results` describes them, except for `seconds`.
  """
  opened = {
    name: stage_model.open_stage(path, run=config)
    for name, path in stages.items()
  }
  evaluator = _build_evaluator(config, directory, opened, has_gold=has_gold)
  answers, language_results, prefix = _answer_prompts(evaluator, opened)
  models = {}
  for name in ("base", "prompted", "sft", "best_of_n", "ppo", "ppo_ptx"):
    sampled, greedy = (
      _summarize(
        evaluator, answers[name][t], answers["sft"][t], greedy=t == _GREEDY
      )
      for t in ("", _GREEDY)
    )
    models[name] = sampled | language_results[name]
    models[name][_GREEDY] = greedy | language_results[name]
  results = {
    "title": "InstructGPT in a small world"
    if has_gold
    else "InstructGPT on given data",
    "seed": config.seed,
    "judge": evaluator.judge.name,
    "judge_kind": evaluator.judge.kind,
    "model": {"parameters": _count_parameters(opened["ppo_ptx"])},
    "models": models,
    "reward_model": _reward_accuracies(config, directory, evaluator),
    "samples": _samples(evaluator, answers, prefix),
    "training_samples": training_samples.read_stages(
      directory, sets=training_samples.SETS
    ),
    "curves": curves.read_curves(directory, CURVES),
    "notes": _notes(evaluator, prefix),
    "config": flags.config_to_dict(config),
  }
  removed = _removed_by_ptx(results)
  if removed is not None:
    results["tax"] = {"removed_by_ptx": removed}
  return results


def _answer_prompts(
  evaluator: Evaluator, stages: Mapping[str, stage_model.Stage]
) -> tuple[dict[str, dict[str, Answers]], dict[str, dict[str, Any]], str]:
  """Has every model answer the held-out prompts.

  Returns:
    The answers, model → temperature ("" or greedy) → answers; each model's LM
    loss and tasks; and the prefix of the prompted baseline.
  """
  settings = evaluator.settings
  answers: dict[str, dict[str, Answers]] = {}
  language_results: dict[str, dict[str, Any]] = {}
  prompts = len(evaluator.prompts)
  total = prompts * (5 * (settings.samples + 1) + settings.best_of_n)
  total += len(evaluator.prefix_prompts) * len(evaluator.prefixes)
  prefix = ""
  with Progress(total, "evaluate", unit="answer", compiles=True) as progress:
    evaluator.on_progress = progress.update
    for index, name in enumerate(("base", "sft", "ppo", "ppo_ptx")):
      model = load_model(stages[name], evaluator.mesh)
      language_results[name] = _measure_language(evaluator, model)
      variants = {name: ""}
      if name == "base":
        prefix = evaluator.choose_prefix(model)
        variants[_PROMPTED] = prefix
      for variant, variant_prefix in variants.items():
        stream = 10 + 10 * index + 2 * (variant != name)
        answers[variant] = {
          "": evaluator.answer(
            model,
            prefix=variant_prefix,
            temperature=1.0,
            samples=settings.samples,
            stream=stream,
          ),
          _GREEDY: evaluator.answer(
            model,
            prefix=variant_prefix,
            temperature=0.0,
            samples=1,
            stream=stream + 1,
          ),
        }
      if name == "sft":
        answers["best_of_n"] = {
          "": evaluator.best_of_n(model, stream=100),
          # All greedy answers are equal, and so is the best of them.
          _GREEDY: answers["sft"][_GREEDY],
        }
  language_results[_PROMPTED] = language_results["base"]
  language_results["best_of_n"] = language_results["sft"]
  return answers, language_results, prefix


def _measure_language(evaluator: Evaluator, model: Model) -> dict[str, Any]:
  """Measures the LM loss on held-out documents, and the public tasks."""
  resamples = evaluator.settings.bootstrap
  assert evaluator.documents is not None
  result: dict[str, Any] = {
    "lm_loss": language.loss_interval(
      *model, evaluator.documents, evaluator.mesh, resamples=resamples
    ).as_dict()
  }
  if evaluator.tasks:
    result["tasks"] = {
      kind: grouped_interval(
        [row.main_score for row in rows],
        [row.item.group or row.item.id for row in rows],
        resamples=resamples,
        share=True,
      ).as_dict()
      for kind, rows in evaluator.answer_tasks(model).items()
    }
  return result


def _count_parameters(stage: stage_model.Stage) -> int:
  """Counts a model's parameters, adapters included."""
  shapes = sharding.unbox(heads.abstract_params(stage.network))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def _removed_by_ptx(results: dict[str, Any]) -> float | None:
  """Returns the share of PPO's added LM loss that PPO-ptx removes."""
  base, ppo, ptx = (
    results["models"][name]["lm_loss"]["mean"]
    for name in ("base", "ppo", "ppo_ptx")
  )
  return (ppo - ptx) / (ppo - base) if ppo > base else None


def _reward_accuracies(
  config: configs.PipelineExperiment, directory: str, evaluator: Evaluator
) -> dict[str, Any]:
  """Returns held-out accuracies of the reward model and of the judge."""
  root = pathlib.Path(directory)
  accuracies: dict[str, Any] = {}
  names = {"reward": "accuracy", "judge": "judge_accuracy"}
  for stage, label in names.items():
    summary = files.read_complete(root / stage) or {}
    if "accuracy" in summary:
      accuracies[label] = summary["accuracy"]
  path = rankings.held_out_path(str(root / "rankings"), config.labeling.rounds)
  if pathlib.Path(path).exists():
    accuracies["held_out_labelers"] = reward_loop.count_held_out(
      *evaluator.reward.networks,
      *evaluator.reward.params,
      rankings.read_encoded(path, evaluator.tokenizer, evaluator.data, "valid"),
      evaluator.tokenizer,
      evaluator.mesh,
    ).accuracy.as_dict()
  return accuracies


def _samples(
  evaluator: Evaluator,
  answers: Mapping[str, Mapping[str, Answers]],
  prefix: str,
) -> list[dict[str, Any]]:
  """Returns the first answer of each model to a few prompts.

  Args:
    evaluator: has the prompts.
    answers: model → temperature → answers.
    prefix: that of the prompted baseline.
  """
  samples = []
  prompts = evaluator.prompts[:SAMPLES]
  plain, prompted = (
    evaluator.prompt_texts(text, prompts) for text in ("", prefix)
  )
  for i, prompt in enumerate(prompts):
    first = {
      name: (by_temperature[""], i * by_temperature[""].samples)
      for name, by_temperature in answers.items()
    }
    samples.append(
      {
        "prompt": records.prompt_text(prompt.turns, evaluator.data),
        "model_prompts": {
          name: (prompted if name == _PROMPTED else plain)[i] for name in first
        },
        "answers": {name: a.texts[j] for name, (a, j) in first.items()},
        "scores": {
          name: float(a.judgement.scores[j]) for name, (a, j) in first.items()
        },
      }
    )
  return samples


def _notes(evaluator: Evaluator, prefix: str) -> list[str]:
  n = evaluator.settings.best_of_n
  split = _SPLIT_NAMES[evaluator.settings.split]
  notes = [
    f"{len(evaluator.prompts)} {split} prompts. Intervals are 95 % bootstrap"
    f" intervals over distinct prompts; below {statistics.FEW} prompts, Wilson"
    " intervals of shares and Student intervals of means.",
    "KL is the mean of log model − log policy_init over answers at temperature"
    " 1.",
    f"Best of {n}: the SFT model's answer with the highest reward-model score."
    f" Its KL is an upper bound, which adds ln {n} − {n - 1}/{n} for the"
    " choice.",
    f"Prefix of the prompted base model, chosen by the reward model: {prefix}",
    "PPO and PPO-ptx use exponentially averaged weights.",
  ]
  if evaluator.judge.kind != "gold":
    notes.append(f"The judge is {evaluator.judge.name}.")
  return notes
