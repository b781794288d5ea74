"""Everything that the report says, measured on held-out prompts."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import config as config_lib
from instructgpt_jax import flags, statistics
from instructgpt_jax.data import records, transforms
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.evals import judges, tasks
from instructgpt_jax.loops import (
  inputs,
  language,
  networks,
  sampling,
  scoring,
  workdir,
)
from instructgpt_jax.loops import reward as reward_loop
from instructgpt_jax.pipeline import rankings
from instructgpt_jax.report import curves
from instructgpt_jax.runtime import files
from instructgpt_jax.runtime import mesh as mesh_lib
from instructgpt_jax.runtime.progress import Progress
from instructgpt_jax.types import PyTree, Rollout
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
_GREEDY = "greedy"


@dataclasses.dataclass
class _Answers:
  """One model's answers to the test prompts at one temperature."""

  rollout: Rollout  # after the plain prompts
  texts: list[str]
  judged: judges.Judged
  rm: np.ndarray  # [R]
  kl: np.ndarray  # [R] log-ratio to the policy's start
  count: int  # answers a prompt

  def per_prompt(self, values: np.ndarray) -> np.ndarray:
    """[R] → [prompts, answers]."""
    return np.asarray(values, np.float64).reshape(-1, self.count)


class _Evaluator:
  """Holds what all models are measured with."""

  def __init__(
    self,
    config: config_lib.PipelineExperiment,
    directory: str,
    stages: Mapping[str, str],
    *,
    has_gold: bool,
  ):
    self.config, self.directory = config, directory
    self.mesh: Mesh = mesh_lib.make_mesh(config.mesh)
    self.stages = {
      name: workdir.open_stage(path) for name, path in stages.items()
    }
    self.tokenizer = self.stages["policy_init"].tokenizer
    self.network = self.stages["policy_init"].network
    self.reward_network = self.stages["reward"].network
    self.reward = networks.load(self.stages["reward"], self.mesh)
    self.start = networks.load(self.stages["policy_init"], self.mesh)
    splits = inputs.prompts(config.data, self.tokenizer)
    held = splits.test or splits.valid or splits.train
    self.prompts = held[: config.evaluation.prompts]
    self.choosing = (splits.valid or held)[: config.evaluation.prefix_prompts]
    self.documents = _held_out_rows(config, self.tokenizer)
    self.tasks: list[dict[str, Any]] = []
    self.judge: judges.Judge
    if has_gold:
      world_folder = pathlib.Path(directory) / "world"
      self.judge = judges.Gold(write.load_world(world_folder))
      paths = write.world_files(world_folder)
      self.tasks = tasks.read_items(paths.tasks)
      self.prefixes = tuple(files.read_json(paths.world)["prefixes"])
    else:
      judge = workdir.open_stage(str(pathlib.Path(directory) / "judge"))
      self.judge = judges.RewardModel(judge, self.mesh)
      self.prefixes = PREFIXES
    if config.evaluation.prefixes:
      self.prefixes = tuple(
        p.strip() for p in config.evaluation.prefixes.split("|") if p.strip()
      )
    self.progress: Progress

  def encode(self, prefix: str, prompts: Sequence[records.Prompt]):
    """Token ids of prompts behind a prefix; a long one loses the prefix."""
    before = (Turn("system", prefix),) if prefix else ()
    ids = transforms.encode_prompts(
      [before + p.turns for p in prompts], self.tokenizer, self.config.data
    )
    room = self.network.config.context - self.config.data.max_response_tokens
    if prefix and max(map(len, ids)) > room:
      plain = self.encode("", prompts)
      ids = [
        a if len(a) <= room else b for a, b in zip(ids, plain, strict=True)
      ]
    return ids

  def sample(
    self,
    params: PyTree,
    prompts: Sequence[np.ndarray],
    *,
    temperature: float,
    samples: int,
    stream: int,
  ) -> Rollout:
    """Answers; each stream of keys is used once."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), 2000 + stream)
    return sampling.respond(
      self.network,
      params,
      prompts,
      key,
      tokenizer=self.tokenizer,
      max_new_tokens=self.config.data.max_response_tokens,
      mesh=self.mesh,
      temperature=temperature,
      samples=samples,
      batch_size=self.config.evaluation.batch_size,
      told=self.progress.update,
    )

  def choose_prefix(self, params: PyTree) -> str:
    """The candidate whose answers the reward model likes best (App. B)."""
    plain = self.encode("", self.choosing)
    means = {}
    for i, prefix in enumerate(self.prefixes):
      rollout = self.sample(
        params,
        self.encode(prefix, self.choosing),
        temperature=1.0,
        samples=1,
        stream=i,
      )
      means[prefix] = self.rm_scores(
        sampling.with_prompts(rollout, plain, self.tokenizer)
      ).mean()
    return max(means, key=lambda prefix: means[prefix])

  def rm_scores(self, rollout: Rollout) -> np.ndarray:
    return scoring.score(
      self.reward_network, self.reward, scoring.answers(rollout), self.mesh
    )

  def answers(
    self,
    params: PyTree,
    *,
    prefix: str = "",
    temperature: float,
    samples: int,
    stream: int,
  ) -> _Answers:
    """Samples, judges and scores answers to the test prompts."""
    rollout = self.sample(
      params,
      self.encode(prefix, self.prompts),
      temperature=temperature,
      samples=samples,
      stream=stream,
    )
    own = _recorded(rollout)
    if prefix:
      plain = self.encode("", self.prompts)
      rollout = sampling.with_prompts(
        rollout, [ids for ids in plain for _ in range(samples)], self.tokenizer
      )
    return self.judged(rollout, own, samples)

  def judged(self, rollout: Rollout, own: np.ndarray, count: int) -> _Answers:
    start = scoring.log_likelihood(
      self.network, self.start, scoring.answers(rollout), self.mesh
    )
    texts = sampling.texts(rollout, self.tokenizer)
    asked = [p.turns[-1].text for p in self.prompts for _ in range(count)]
    return _Answers(
      rollout,
      texts,
      self.judge(asked, texts, rollout),
      self.rm_scores(rollout),
      own - start,
      count,
    )

  def best_of_n(self, params: PyTree, stream: int) -> _Answers:
    """For each prompt, the best of n SFT answers by the reward model, once.

    KL(best ‖ start) = KL(best ‖ SFT), which is at most ln n − (n − 1)/n, + the
    mean of log SFT − log start over the chosen answers.
    """
    n = self.config.evaluation.best_of_n
    drawn = self.sample(
      params,
      self.encode("", self.prompts),
      temperature=1.0,
      samples=n,
      stream=stream,
    )
    scores = self.rm_scores(drawn).reshape(-1, n)
    best = scores.argmax(axis=1) + n * np.arange(len(scores))
    rollout = jax.tree.map(lambda x: x[best], drawn)
    own = _recorded(rollout) + statistics.best_of_n_kl(n)
    return self.judged(rollout, own, 1)

  def measured(self, mine: _Answers, sft: _Answers) -> dict[str, Any]:
    """The report's numbers of one model at one temperature."""
    resamples = self.config.evaluation.bootstrap

    def interval(values: np.ndarray) -> dict[str, float]:
      return statistics.bootstrap_interval(
        mine.per_prompt(values), resamples=resamples
      ).as_dict()

    judged, rollout = mine.judged, mine.rollout
    wins = statistics.win_rate(
      mine.per_prompt(judged.scores), sft.per_prompt(sft.judged.scores)
    )
    gold = self.judge.kind == "gold"
    return {
      "win_rate": statistics.bootstrap_interval(
        wins, resamples=resamples
      ).as_dict(),
      "gold": interval(judged.scores) if gold else None,
      "judge_score": None if gold else interval(judged.scores),
      "likert": interval(judged.likert) if judged.likert is not None else None,
      "rm_score": interval(mine.rm),
      "kl": interval(mine.kl),
      "response_length": interval(np.asarray(rollout.response_mask).sum(1)),
      "ended": interval(np.asarray(rollout.ended)),
      "failures": {k: interval(v) for k, v in judged.failures.items()},
    }


def _recorded(rollout: Rollout) -> np.ndarray:
  """[R] float64 log-probability at temperature 1 that sampling recorded."""
  return np.where(rollout.response_mask, rollout.logp, 0.0).sum(axis=1)


def evaluate(
  config: config_lib.PipelineExperiment,
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
  e = _Evaluator(config, directory, stages, has_gold=has_gold)
  samples = config.evaluation.samples
  answers: dict[str, dict[str, _Answers]] = {}
  extra: dict[str, dict[str, Any]] = {}
  prompts = len(e.prompts)
  total = prompts * (5 * (samples + 1) + config.evaluation.best_of_n)
  total += len(e.choosing) * len(e.prefixes)
  prefix = ""
  with Progress(total, "evaluate", unit="answer") as e.progress:
    for place, name in enumerate(("base", "sft", "ppo", "ppo_ptx")):
      params = networks.load(e.stages[name], e.mesh)
      extra[name] = _language(e, params)
      variants = {name: ""}
      if name == "base":
        prefix = e.choose_prefix(params)
        variants["prompted"] = prefix
      for variant, before in variants.items():
        stream = 10 + 10 * place + 2 * (variant != name)
        answers[variant] = {
          "": e.answers(
            params, prefix=before, temperature=1.0, samples=samples,
            stream=stream,
          ),
          _GREEDY: e.answers(
            params, prefix=before, temperature=0.0, samples=1,
            stream=stream + 1,
          ),
        }  # fmt: skip
      if name == "sft":
        answers["best_of_n"] = {
          "": e.best_of_n(params, stream=100),
          # Greedy answers are all the same, and so is the best of them.
          _GREEDY: answers["sft"][_GREEDY],
        }
  extra["prompted"], extra["best_of_n"] = extra["base"], extra["sft"]
  models = {}
  for name in ("base", "prompted", "sft", "best_of_n", "ppo", "ppo_ptx"):
    one, greedy = (
      e.measured(answers[name][t], answers["sft"][t]) for t in ("", _GREEDY)
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
    "reward_model": _reward_models(e),
    "samples": _samples(e, answers),
    "curves": curves.read_curves(directory, CURVES),
    "notes": _notes(e, prefix),
    "config": flags.config_to_dict(config),
  }
  removed = _removed(results)
  if removed is not None:
    results["tax"] = {"removed_by_ptx": removed}
  return results


def _language(e: _Evaluator, params: PyTree) -> dict[str, Any]:
  """LM loss on held-out documents, and the public tasks of the world."""
  config = e.config
  resamples = config.evaluation.bootstrap
  found: dict[str, Any] = {
    "lm_loss": language.loss_interval(
      e.network, params, e.documents, e.mesh, resamples=resamples
    ).as_dict()
  }
  if e.tasks:
    found["tasks"] = {
      kind: interval.as_dict()
      for kind, interval in tasks.accuracies(
        e.network,
        params,
        e.tasks,
        tokenizer=e.tokenizer,
        max_new_tokens=config.data.max_response_tokens,
        mesh=e.mesh,
        resamples=resamples,
      ).items()
    }
  return found


def _held_out_rows(
  config: config_lib.PipelineExperiment, tokenizer: Tokenizer
) -> transforms.Rows:
  """Rows of documents that were not trained on."""
  documents = inputs.documents(config.data)
  rows = inputs.document_rows(
    documents.valid or documents.train,
    tokenizer,
    config.pretrain.sequence or config.model.context,
  )
  return {k: v[: language.VALID_ROWS] for k, v in rows.items()}


def _removed(results: dict[str, Any]) -> float | None:
  """Share of the LM loss that PPO adds to the base model's and ptx removes."""
  base, ppo, ptx = (
    results["models"][name]["lm_loss"]["mean"]
    for name in ("base", "ppo", "ppo_ptx")
  )
  return (ppo - ptx) / (ppo - base) if ppo > base else None


def _reward_models(e: _Evaluator) -> dict[str, Any]:
  """Accuracies on held-out rankings, of the RM and of the judge."""
  found: dict[str, Any] = {}
  names = {"reward": "accuracy", "judge": "judge_accuracy"}
  for stage, label in names.items():
    summary = files.read_complete(pathlib.Path(e.directory) / stage) or {}
    if "accuracy" in summary:
      found[label] = summary["accuracy"]
  path = rankings.held_out(
    str(pathlib.Path(e.directory) / "rankings"), e.config.labeling.rounds
  )
  if pathlib.Path(path).exists():
    found["held_out_labelers"] = reward_loop.accuracy(
      e.reward_network,
      e.reward,
      rankings.read(path, e.tokenizer, e.config.data, "valid"),
      e.tokenizer,
      e.mesh,
    ).as_dict()
  return found


def _samples(
  e: _Evaluator, answers: Mapping[str, Mapping[str, _Answers]]
) -> list[dict[str, Any]]:
  """The first answer of each model to a few prompts, side by side."""
  shown = []
  for i, prompt in enumerate(e.prompts[:SAMPLES]):
    shown.append(
      {
        "prompt": records.prompt_text(prompt.turns, e.config.data),
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


def _notes(e: _Evaluator, prefix: str) -> list[str]:
  n = e.config.evaluation.best_of_n
  notes = [
    f"{len(e.prompts)} held-out prompts; intervals are 95 % bootstraps over"
    " distinct prompts.",
    "KL is the mean of log model − log start over answers; the start of PPO is"
    " policy_init.",
    f"Best of {n}: SFT's answer that the reward model likes best. Its KL is an"
    f" upper bound, with ln {n} − {n - 1}/{n} for the choice.",
    f"The prompted base model's prefix, which the reward model chose: {prefix}",
    "PPO and PPO-ptx are the averaged weights.",
  ]
  if e.judge.kind != "gold":
    notes.append(f"The judge is {e.judge.name}.")
  return notes
