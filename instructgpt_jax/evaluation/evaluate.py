"""One model on held-out prompts: every number, prompt by prompt.

The numbers of a prompt stay apart, so that models can be compared in pairs and
seeds pooled afterwards. `answers.json` holds

  prompts, families   [P] text, and kind of request in the embedded world
  sampled, greedy     temperature 1 and 0: gold (or the judge's score), rm, kl
                      (sampled alone), length, ended and failures.<field>, each
                      [P][answers]
  kept                gold and rm of `samples_kept` answers, [P][N]
  lm                  nll and weight, [rows]
  tasks               {kind: [items]} 0 or 1
  bias                [pairs] bits
  prefix              what stood before the prompts
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax import configs, statistics
from instructgpt_jax.configs import checks
from instructgpt_jax.data import records
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import bias, judges, measure, rules, tasks
from instructgpt_jax.evaluation.measure import Answers, Evaluator, Model
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.training import inheritance, inputs, language, stage_model
from instructgpt_jax.world import requests, write
from instructgpt_jax.world.facts import World

ANSWERS = "answers.json"
AUTO = "auto"
_DIGITS = 5


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
    _needed(config.init_from, "init_from", "a model to measure"),
    kind=stage_model.LANGUAGE,
    field="init_from",
    run=config,
  )
  checks.check_lengths(config.data, stage.model_config.max_seq_len)
  inheritance.check_same_prompts(stage, config.data, "init_from")
  e, world, choosing = _evaluator(config, stage)
  model = measure.load(stage, e.mesh)
  result: dict[str, Any] = {
    "prompts": [p.turns[-1].text for p in e.prompts],
    "families": _families(world, e.prompts),
  }
  draws = config.evaluation.best_of_n if section.filter else 0
  total = len(e.prompts) * (
    (draws or config.evaluation.samples) + 1 + section.samples_kept
  )
  with Progress(total, "evaluate", unit="answer", compiles=True) as progress:
    e.told = progress.update
    prefix = _prefix(config, e, model, choosing)
    for name, temperature, samples in (
      ("sampled", 1.0, config.evaluation.samples),
      ("greedy", 0.0, 1),
    ):
      if section.filter:
        answers = rules.filtered(
          e, model, section.filter.split("|"), section.refusal,
          draws=draws if temperature else 1, temperature=temperature,
          prefix=prefix,
        )  # fmt: skip
      else:
        answers = e.answers(
          model, prefix=prefix, temperature=temperature, samples=samples,
          stream=10 + (name == "greedy"),
        )  # fmt: skip
      result[name] = _table(answers, greedy=temperature == 0)
    if section.samples_kept:
      saved_answers = e.answers(
        model, prefix=prefix, temperature=1.0, samples=section.samples_kept,
        stream=12,
      )  # fmt: skip
      result["kept"] = {k: _table(saved_answers)[k] for k in ("gold", "rm")}
  result |= _language(config, e, model, world, prefix)
  result["prefix"] = prefix
  files.write_json_atomic(
    pathlib.Path(directory) / ANSWERS, result, indent=None
  )
  files.mark_complete(directory, _means(result))


def _needed(path: str, field: str, what: str) -> str:
  if not path:
    raise UserError(f"{what} is needed", field=field, fix=f"give --{field}=DIR")
  return path


def _evaluator(
  config: configs.EvaluateExperiment, stage: stage_model.Stage
) -> tuple[Evaluator, World | None, Sequence[records.Prompt]]:
  """Returns the evaluator, the world, and prompts to choose a prefix on."""
  section = config.measure
  mesh = mesh_lib.make_mesh(config.mesh)
  tokenizer = stage.tokenizer
  start, reward = (
    stage_model.open_stage(
      _needed(path, f"measure.{field}", what),
      kind=kind,
      field=f"measure.{field}",
      run=config,
    )
    for path, field, what, kind in (
      (section.start, "start", "the policy's start", stage_model.LANGUAGE),
      (
        section.reward_model,
        "reward_model",
        "a reward model",
        stage_model.SCALAR,
      ),
    )
  )
  for other, field in ((start, "start"), (reward, "reward_model")):
    inheritance.require_compatible(
      other, tokenizer, config.data, f"measure.{field}"
    )
  world = write.load_world(section.world) if section.world else None
  judge: judges.Judge
  if world is not None:
    judge = judges.Gold(world)
  else:
    path = _needed(section.judge, "measure.judge", "a judge, or the world,")
    judging = stage_model.open_stage(
      path, kind=stage_model.SCALAR, field="measure.judge", run=config
    )
    inheritance.require_compatible(
      judging, tokenizer, config.data, "measure.judge"
    )
    judge = judges.RewardModel(judging, mesh)
  prompts = inputs.evaluation_prompts(
    config.data, tokenizer, config.evaluation, config.seed
  )
  return (
    Evaluator(
      seed=config.seed,
      data=config.data,
      settings=config.evaluation,
      mesh=mesh,
      tokenizer=tokenizer,
      start=measure.load(start, mesh),
      reward=measure.load(reward, mesh),
      judge=judge,
      prompts=prompts.measured,
    ),
    world,
    prompts.choosing,
  )


def _families(
  world: World | None, prompts: Sequence[records.Prompt]
) -> list[str]:
  if world is None:
    return [""] * len(prompts)
  return [requests.parse(world, p.turns[-1].text).family for p in prompts]


def _prefix(
  config: configs.EvaluateExperiment,
  e: Evaluator,
  model: Model,
  choosing: Sequence[records.Prompt],
) -> str:
  """The prefix itself, or the one of four that the reward model likes best."""
  given = config.measure.prefix
  if given != AUTO:
    return given
  candidates = [
    p.strip() for p in config.evaluation.prefixes.split("|") if p.strip()
  ]
  if config.measure.world and not candidates:
    paths = write.world_files(config.measure.world)
    candidates = list(files.read_json(paths.world)["prefixes"])
  if not candidates:
    raise UserError(
      "is auto, but there are no candidates",
      field="measure.prefix",
      fix="give --evaluation.prefixes='one|another'",
    )
  return e.choose_prefix(model, candidates, choosing)


def _table(answers: Answers, *, greedy: bool = False) -> dict[str, Any]:
  """Returns the numbers of each answer; greedy answers have no KL."""

  def rows(values: Any) -> list[list[float]]:
    return np.round(answers.per_prompt(np.asarray(values)), _DIGITS).tolist()

  return {
    "gold": rows(answers.judged.scores),
    "rm": rows(answers.rm),
    **({} if greedy else {"kl": rows(answers.kl)}),
    "length": rows(np.asarray(answers.rollout.response_mask).sum(1)),
    "ended": rows(answers.rollout.ended),
    "failures": {k: rows(v) for k, v in answers.judged.failures.items()},
  }


def _language(
  config: configs.EvaluateExperiment,
  e: Evaluator,
  model: Model,
  world: World | None,
  prefix: str,
) -> dict[str, Any]:
  """LM loss, public tasks and bias, as far as they are asked for."""
  section = config.measure
  found: dict[str, Any] = {}
  if section.rows and config.data.pretraining:
    rows = inputs.document_rows(
      inputs.evaluation_documents(config.data, config.evaluation.split),
      e.tokenizer,
      config.model.max_seq_len,
    )
    nll, weight = language.row_losses(
      *model, {k: v[: section.rows] for k, v in rows.items()}, e.mesh
    )
    found["lm"] = {"nll": nll.tolist(), "weight": weight.tolist()}
  if section.task_items and world is not None:
    items = tasks.read_items(write.world_files(section.world).tasks)
    kept: dict[str, list[dict[str, Any]]] = {}
    for item in items:
      kept.setdefault(item["kind"], []).append(item)
    found["tasks"] = tasks.scores(
      *model,
      [i for kind in kept.values() for i in kind[: section.task_items]],
      tokenizer=e.tokenizer,
      max_new_tokens=config.data.max_response_tokens,
      mesh=e.mesh,
    )
    found["bias"] = bias.entropies(
      *model,
      bias.make_pairs(section.task_items, config.seed),
      prefix=prefix,
      tokenizer=e.tokenizer,
      mesh=e.mesh,
    ).tolist()
  return found


def _means(result: dict[str, Any]) -> dict[str, Any]:
  """What a sweep's table shows."""
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
    kept = [np.asarray(result["kept"][k]) for k in ("rm", "gold")]
    for n in statistics.doublings(kept[0].shape[1]):
      means[f"best_of_{n}"] = float(
        np.mean(statistics.unbiased_best_of_n(*kept, n))
      )
  return means
