"""Everything that the report says, measured on held-out prompts."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt_jax import configs, statistics
from instructgpt_jax.cli import flags
from instructgpt_jax.data import packing, records
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.evaluation import judges, measure, tasks
from instructgpt_jax.evaluation.measure import Answers, Evaluator, Model
from instructgpt_jax.pipeline import rankings
from instructgpt_jax.report import curves
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.training import inputs, language, stage_model
from instructgpt_jax.training import reward as reward_loop
from instructgpt_jax.world import write

# Candidates for real data; the world brings its own.
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


@dataclasses.dataclass
class _Setting:
  """The evaluator with what only the pipeline measures."""

  config: configs.PipelineExperiment
  directory: str
  stages: Mapping[str, stage_model.Stage]
  evaluator: Evaluator
  choosing: Sequence[records.Prompt]  # on which a prefix is chosen
  prefixes: Sequence[str]
  documents: packing.Rows
  tasks: list[dict[str, Any]]


def _setting(
  config: configs.PipelineExperiment,
  directory: str,
  folders: Mapping[str, str],
  *,
  has_gold: bool,
) -> _Setting:
  mesh = mesh_lib.make_mesh(config.mesh)
  stages = {
    name: stage_model.open_stage(path, run=config)
    for name, path in folders.items()
  }
  tokenizer = stages["policy_init"].tokenizer
  prompts = inputs.evaluation_prompts(
    config.data, tokenizer, config.evaluation, config.seed
  )
  items: list[dict[str, Any]] = []
  judge: judges.Judge
  if has_gold:
    world_folder = pathlib.Path(directory) / "world"
    judge = judges.Gold(write.load_world(world_folder))
    paths = write.world_files(world_folder)
    items = tasks.read_items(paths.tasks)
    prefixes = tuple(files.read_json(paths.world)["prefixes"])
  else:
    stage = stage_model.open_stage(str(pathlib.Path(directory) / "judge"))
    judge = judges.RewardModel(stage, mesh)
    prefixes = PREFIXES
  if config.evaluation.prefixes:
    prefixes = tuple(
      p.strip() for p in config.evaluation.prefixes.split("|") if p.strip()
    )
  evaluator = Evaluator(
    seed=config.seed,
    data=config.data,
    settings=config.evaluation,
    mesh=mesh,
    tokenizer=tokenizer,
    start=measure.load(stages["policy_init"], mesh),
    reward=measure.load(stages["reward"], mesh),
    judge=judge,
    prompts=prompts.measured,
  )
  context = stages["policy_init"].model_config.max_seq_len
  return _Setting(
    config=config,
    directory=directory,
    stages=stages,
    evaluator=evaluator,
    choosing=prompts.choosing,
    prefixes=prefixes,
    documents=held_out_rows(
      config.data,
      tokenizer,
      min(config.pretrain.sequence or context, context),
      config.evaluation.split,
    ),
    tasks=items,
  )


def _measured(
  e: Evaluator, mine: Answers, sft: Answers, *, greedy: bool
) -> dict[str, Any]:
  """Returns the report's numbers of one model at one temperature.

  Greedy answers have no KL: they are not a sample of the model, and the mean of
  log model − log start over them estimates nothing.
  """
  resamples = e.settings.bootstrap

  def interval(values: np.ndarray, *, share: bool = False) -> dict[str, Any]:
    return statistics.bootstrap_interval(
      mine.per_prompt(values), resamples=resamples, share=share
    ).as_dict()

  judged, rollout = mine.judged, mine.rollout
  wins = statistics.win_rate(
    mine.per_prompt(judged.scores), sft.per_prompt(sft.judged.scores)
  )
  gold = e.judge.kind == "gold"
  win_rate = statistics.bootstrap_interval(
    wins, resamples=resamples, share=True
  ).as_dict()
  if mine is sft:  # every answer ties with itself, whatever the prompts
    win_rate |= {"low": 0.5, "high": 0.5}
  return {
    "win_rate": win_rate,
    "gold": interval(judged.scores, share=True) if gold else None,
    "judge_score": None if gold else interval(judged.scores),
    "likert": interval(judged.likert) if judged.likert is not None else None,
    "rm_score": interval(mine.rm),
    "kl": None if greedy else interval(mine.kl),
    "response_length": interval(np.asarray(rollout.response_mask).sum(1)),
    "ended": interval(np.asarray(rollout.ended), share=True),
    "failures": {
      k: interval(v, share=True) for k, v in judged.failures.items()
    },
  }


def evaluate(
  config: configs.PipelineExperiment,
  directory: str,
  stages: Mapping[str, str],
  *,
  has_gold: bool,
) -> dict[str, Any]:
  """Measures all models.

  Args:
    config: the pipeline's, with the data that were used.
    directory: its workdir.
    stages: folders of base, policy_init, sft, ppo, ppo_ptx and reward.
    has_gold: whether the world's gold labeler can judge.

  Returns:
    Results as `report.results` describes them, but for `seconds`.
  """
  setting = _setting(config, directory, stages, has_gold=has_gold)
  e = setting.evaluator
  samples = config.evaluation.samples
  answers: dict[str, dict[str, Answers]] = {}
  extra: dict[str, dict[str, Any]] = {}
  total = len(e.prompts) * (5 * (samples + 1) + config.evaluation.best_of_n)
  total += len(setting.choosing) * len(setting.prefixes)
  prefix = ""
  with Progress(total, "evaluate", unit="answer", compiles=True) as progress:
    e.told = progress.update
    for place, name in enumerate(("base", "sft", "ppo", "ppo_ptx")):
      model = measure.load(setting.stages[name], e.mesh)
      extra[name] = _language(setting, model)
      variants = {name: ""}
      if name == "base":
        prefix = e.choose_prefix(model, setting.prefixes, setting.choosing)
        variants["prompted"] = prefix
      for variant, before in variants.items():
        stream = 10 + 10 * place + 2 * (variant != name)
        answers[variant] = {
          "": e.answers(
            model, prefix=before, temperature=1.0, samples=samples,
            stream=stream,
          ),
          _GREEDY: e.answers(
            model, prefix=before, temperature=0.0, samples=1,
            stream=stream + 1,
          ),
        }  # fmt: skip
      if name == "sft":
        answers["best_of_n"] = {
          "": e.best_of_n(model, stream=100),
          # Greedy answers are all the same, and so is the best of them.
          _GREEDY: answers["sft"][_GREEDY],
        }
  extra["prompted"], extra["best_of_n"] = extra["base"], extra["sft"]
  models = {}
  for name in ("base", "prompted", "sft", "best_of_n", "ppo", "ppo_ptx"):
    one, greedy = (
      _measured(e, answers[name][t], answers["sft"][t], greedy=t == _GREEDY)
      for t in ("", _GREEDY)
    )
    models[name] = one | extra[name]
    models[name][_GREEDY] = greedy | extra[name]
  results = {
    "title": "InstructGPT in a small world"
    if has_gold
    else "InstructGPT on given data",
    "seed": config.seed,
    "judge": e.judge.name,
    "judge_kind": e.judge.kind,
    "models": models,
    "reward_model": _reward_models(setting),
    "samples": _samples(setting, answers),
    "curves": curves.read_curves(directory, CURVES),
    "notes": _notes(e, prefix),
    "config": flags.config_to_dict(config),
  }
  removed = _removed(results)
  if removed is not None:
    results["tax"] = {"removed_by_ptx": removed}
  return results


def _language(setting: _Setting, model: Model) -> dict[str, Any]:
  """LM loss on held-out documents, and the public tasks of the world."""
  e = setting.evaluator
  resamples = e.settings.bootstrap
  found: dict[str, Any] = {
    "lm_loss": language.loss_interval(
      *model, setting.documents, e.mesh, resamples=resamples
    ).as_dict()
  }
  if setting.tasks:
    scores = tasks.scores(
      *model,
      setting.tasks,
      tokenizer=e.tokenizer,
      max_new_tokens=e.data.max_response_tokens,
      mesh=e.mesh,
    )
    found["tasks"] = {
      kind: statistics.bootstrap_interval(
        values, resamples=resamples, share=True
      ).as_dict()
      for kind, values in scores.items()
    }
  return found


def held_out_rows(
  data: configs.Data, tokenizer: Tokenizer, length: int, split: str = "test"
) -> packing.Rows:
  """Rows of documents that were not trained on, unless `split` is train."""
  rows = inputs.document_rows(
    inputs.evaluation_documents(data, split), tokenizer, length
  )
  return {k: v[: language.VALID_ROWS] for k, v in rows.items()}


def _removed(results: dict[str, Any]) -> float | None:
  """Share of the LM loss that PPO adds to the base model's and ptx removes."""
  base, ppo, ptx = (
    results["models"][name]["lm_loss"]["mean"]
    for name in ("base", "ppo", "ppo_ptx")
  )
  return (ppo - ptx) / (ppo - base) if ppo > base else None


def _reward_models(setting: _Setting) -> dict[str, Any]:
  """Accuracies on held-out rankings, of the RM and of the judge."""
  found: dict[str, Any] = {}
  e = setting.evaluator
  names = {"reward": "accuracy", "judge": "judge_accuracy"}
  for stage, label in names.items():
    summary = files.read_complete(pathlib.Path(setting.directory) / stage) or {}
    if "accuracy" in summary:
      found[label] = summary["accuracy"]
  path = rankings.held_out(
    str(pathlib.Path(setting.directory) / "rankings"),
    setting.config.labeling.rounds,
  )
  if pathlib.Path(path).exists():
    found["held_out_labelers"] = reward_loop.count_held_out(
      *e.reward,
      rankings.read(path, e.tokenizer, e.data, "valid"),
      e.tokenizer,
      e.mesh,
    ).accuracy.as_dict()
  return found


def _samples(
  setting: _Setting, answers: Mapping[str, Mapping[str, Answers]]
) -> list[dict[str, Any]]:
  """The first answer of each model to a few prompts, side by side."""
  shown = []
  e = setting.evaluator
  for i, prompt in enumerate(e.prompts[:SAMPLES]):
    shown.append(
      {
        "prompt": records.prompt_text(prompt.turns, e.data),
        "answers": {
          name: found[""].texts[i * found[""].count]
          for name, found in answers.items()
        },
        "scores": {
          name: float(found[""].judged.scores[i * found[""].count])
          for name, found in answers.items()
        },
      }
    )
  return shown


def _notes(e: Evaluator, prefix: str) -> list[str]:
  n = e.settings.best_of_n
  notes = [
    f"{len(e.prompts)} {_SPLIT_NAMES[e.settings.split]} prompts; intervals are"
    f" 95 % bootstraps over distinct prompts, and below {statistics.FEW}"
    " Wilson's of shares and Student's of means.",
    "KL is the mean of log model − log start over answers at temperature 1; the"
    " start of PPO is policy_init.",
    f"Best of {n}: SFT's answer that the reward model likes best. Its KL is an"
    f" upper bound, with ln {n} − {n - 1}/{n} for the choice.",
    f"The prompted base model's prefix, which the reward model chose: {prefix}",
    "PPO and PPO-ptx are the averaged weights.",
  ]
  if e.judge.kind != "gold":
    notes.append(f"The judge is {e.judge.name}.")
  return notes
