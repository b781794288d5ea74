"""Measures one model on held-out prompts.

Every answer and value is recorded per prompt, so that models can be compared in
pairs (`paired`) and seeds can be pooled. `answers.json` contains

  prompts, families   [P] text, and prompt family in the embedded world
  model_prompts       [P] text that the model continued, with the prefix, the
                      template and special tokens
  sampled, greedy     temperature 1 and 0: text, gold (or the judge's score),
                      rm, kl (sampled only), length, ended and
                      failures.<field>, each [P][answers]
  kept                gold and rm of `samples_kept` answers, [P][N]
  lm                  nll and weight, [rows]
  tasks               {task: [items]} main measure, from 0 to 1
  task_answers        {task: [items]} id, prompt, answer or choices, scores
  bias                [pairs] bits
  prefix              text before the prompts
  prefix_omitted      number of prompts that are too long for it
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax import configs, statistics
from instructgpt_jax.configs import checks
from instructgpt_jax.data import records
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import bias, rules, setup
from instructgpt_jax.evaluation.evaluator import (
  Answers,
  Evaluator,
  Model,
  load_model,
)
from instructgpt_jax.evaluation.tasks import registry
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress, log_line
from instructgpt_jax.training import inheritance, language, stage_model
from instructgpt_jax.world import requests
from instructgpt_jax.world.facts import World

ANSWERS = "answers.json"
AUTO = "auto"
_DIGITS = 5
_STREAMS = {"sampled": 10, "greedy": 11, "best_of_n": 12}


def run(config: configs.EvaluateExperiment, directory: str) -> None:
  """Measures the model of `init_from`.

  Args:
    config: the experiment.
    directory: its workdir; gets answers.json, and means in complete.json.
  """
  if stage_model.is_complete(directory):
    return
  section = config.measure
  stage = stage_model.open_stage(
    _require(config.init_from, "init_from", "a model to measure"),
    kind=stage_model.LANGUAGE,
    field="init_from",
    run=config,
  )
  checks.check_lengths(config.data, stage.model_config.max_seq_len)
  inheritance.check_same_prompts(stage, config.data, "init_from")
  evaluator = _build_evaluator(config, stage)
  model = load_model(stage, evaluator.mesh)
  result: dict[str, Any] = {
    "prompts": [p.turns[-1].text for p in evaluator.prompts],
    "families": _families(evaluator.world, evaluator.prompts),
  }
  draws = config.evaluation.best_of_n if section.filter else 0
  total = len(evaluator.prompts) * (
    (draws or config.evaluation.samples) + 1 + section.samples_kept
  )
  with Progress(total, "evaluate", unit="answer", compiles=True) as progress:
    evaluator.on_progress = progress.update
    prefix = _choose_prefix(config, evaluator, model)
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
      answers = _answer(config, evaluator, model, prefix, name, temperature)
      result[name] = _table(answers, greedy=temperature == 0)
    if section.samples_kept:
      answers = evaluator.answer(
        model,
        prefix=prefix,
        temperature=1.0,
        samples=section.samples_kept,
        stream=_STREAMS["best_of_n"],
      )
      result["kept"] = {k: _table(answers)[k] for k in ("gold", "rm")}
  result |= _measure_language(config, evaluator, model, prefix)
  result["prefix"] = prefix
  result["prefix_omitted"] = _count_omitted(evaluator, prefix)
  result["model_prompts"] = evaluator.prompt_texts(prefix, evaluator.prompts)
  files.write_json_atomic(
    pathlib.Path(directory) / ANSWERS, result, indent=None
  )
  files.mark_complete(directory, _means(result))


def _require(path: str, field: str, what: str) -> str:
  if not path:
    raise UserError(
      f"is missing: {what}",
      field=field,
      fix=f"set --{field}=DIR",
      code="missing_model",
    )
  return path


def _build_evaluator(
  config: configs.EvaluateExperiment, stage: stage_model.Stage
) -> Evaluator:
  section = config.measure

  def open_beside(path: str, field: str, what: str, kind: str):
    field = f"measure.{field}"
    other = stage_model.open_stage(
      _require(path, field, what), kind=kind, field=field, run=config
    )
    inheritance.require_compatible(other, stage.tokenizer, config.data, field)
    return other

  start = open_beside(
    section.start,
    "start",
    "the policy's initialisation",
    stage_model.LANGUAGE,
  )
  field = "measure.reward_model"
  _require(section.reward_model, field, "a reward model")
  rewards = stage_model.open_reward_models(config)
  for reward in rewards:
    inheritance.require_compatible(reward, stage.tokenizer, config.data, field)
  judge = None
  if not section.world:
    judge = open_beside(
      section.judge,
      "judge",
      "a judge (or set --measure.world)",
      stage_model.SCALAR,
    )
  evaluator = setup.build_evaluator(
    config,
    tokenizer=stage.tokenizer,
    start=start,
    rewards=rewards,
    ensemble=section,
    judge=judge,
    world=section.world,
  )
  tasks = []
  if section.task_items:
    tasks = [
      dataclasses.replace(t, items=t.items[: section.task_items])
      for t in evaluator.tasks
    ]
    tasks += registry.read_tasks(
      section.tasks, section.task_items, config.seed, "measure.tasks"
    )
  documents = None
  if section.rows and config.data.pretraining:
    documents = setup.held_out_rows(
      config.data,
      evaluator.tokenizer,
      checks.row_length(
        section.sequence, config.model.max_seq_len, "measure.sequence"
      ),
      split=config.evaluation.split,
      max_rows=section.rows,
    )
  return dataclasses.replace(evaluator, documents=documents, tasks=tasks)


def _families(
  world: World | None, prompts: Sequence[records.Prompt]
) -> list[str]:
  """Returns each prompt's family; "" outside the embedded world."""
  if world is None:
    return [""] * len(prompts)
  return [requests.parse(world, p.turns[-1].text).family for p in prompts]


def _choose_prefix(
  config: configs.EvaluateExperiment, evaluator: Evaluator, model: Model
) -> str:
  """Returns the prefix of the flags; auto lets the reward model choose it."""
  if config.measure.prefix != AUTO:
    return config.measure.prefix
  if not evaluator.prefixes:
    raise UserError(
      "is auto, but there are no candidates",
      field="measure.prefix",
      fix="set --evaluation.prefixes='one|another'",
      code="no_prefixes",
    )
  return evaluator.choose_prefix(model)


def _count_omitted(evaluator: Evaluator, prefix: str) -> int:
  """Counts the prompts that are asked without the prefix, and says so."""
  if not prefix:
    return 0
  plain, asked = (evaluator.encode(p, evaluator.prompts) for p in ("", prefix))
  count = sum(map(np.array_equal, plain, asked))
  if count:
    log_line(
      f"{count} of {len(plain)} prompts leave no room for the prefix, and are"
      " asked without it"
    )
  return count


def _answer(
  config: configs.EvaluateExperiment,
  evaluator: Evaluator,
  model: Model,
  prefix: str,
  name: str,
  temperature: float,
) -> Answers:
  """Answers the prompts, through the rule filter if the flags ask for one."""
  section = config.measure
  if section.filter:
    return rules.answer_filtered(
      evaluator,
      model,
      section.filter.split("|"),
      section.refusal,
      draws=config.evaluation.best_of_n if temperature else 1,
      temperature=temperature,
      prefix=prefix,
    )
  return evaluator.answer(
    model,
    prefix=prefix,
    temperature=temperature,
    samples=config.evaluation.samples if temperature else 1,
    stream=_STREAMS[name],
  )


def _table(answers: Answers, *, greedy: bool = False) -> dict[str, Any]:
  """Returns the values of each answer; greedy answers have no KL."""

  def rows(values: Any) -> list[list[float]]:
    grouped = answers.group_by_prompt(np.asarray(values))
    return np.round(grouped, _DIGITS).tolist()

  return {
    "text": [
      answers.texts[i : i + answers.samples]
      for i in range(0, len(answers.texts), answers.samples)
    ],
    "gold": rows(answers.judgement.scores),
    "rm": rows(answers.rm_scores),
    **({} if greedy else {"kl": rows(answers.kl)}),
    "length": rows(np.asarray(answers.rollout.response_mask).sum(1)),
    "ended": rows(answers.rollout.ended),
    "failures": {k: rows(v) for k, v in answers.judgement.failures.items()},
  }


def _measure_language(
  config: configs.EvaluateExperiment,
  evaluator: Evaluator,
  model: Model,
  prefix: str,
) -> dict[str, Any]:
  """Measures LM loss, public tasks and bias, where the flags ask for them."""
  result: dict[str, Any] = {}
  if evaluator.documents is not None:
    nll, weight = language.row_losses(
      *model, evaluator.documents, evaluator.mesh
    )
    result["lm"] = {"nll": nll.tolist(), "weight": weight.tolist()}
  if evaluator.tasks:
    answered = evaluator.answer_tasks(model)
    result["tasks"] = {
      name: [row.main_score for row in rows] for name, rows in answered.items()
    }
    result["task_answers"] = {
      name: [row.to_json() for row in rows] for name, rows in answered.items()
    }
  if config.measure.task_items and evaluator.world is not None:
    result["bias"] = bias.measure_bias(
      evaluator.text_model(model),
      bias.make_pairs(config.measure.task_items, config.seed),
      prefix=prefix,
    )
  return result


def _means(result: dict[str, Any]) -> dict[str, Any]:
  """Returns the means that a sweep's table shows."""
  means: dict[str, Any] = {"prompts": len(result["prompts"])}
  for key, prefix in (("sampled", ""), ("greedy", "greedy_")):
    for name in ("gold", "rm", "kl", "length", "ended"):
      if name in result[key]:
        means[prefix + name] = float(np.mean(result[key][name]))
  if "lm" in result:
    lm = result["lm"]
    means["lm_loss"] = float(np.sum(lm["nll"]) / np.sum(lm["weight"]))
  for kind, scores in result.get("tasks", {}).items():
    means[kind] = float(np.mean(scores))
  if "bias" in result:
    means["bias_entropy"] = float(np.mean(result["bias"]))
  if "kept" in result:
    rm, gold = (np.asarray(result["kept"][k]) for k in ("rm", "gold"))
    for n in statistics.doublings(rm.shape[1]):
      means[f"best_of_{n}"] = float(
        np.mean(statistics.unbiased_best_of_n(rm, gold, n))
      )
  return means
