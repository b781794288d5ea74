"""Makes rankings: labels the world's, or splits the user's for a judge."""

from __future__ import annotations

import dataclasses
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, reading, records
from instructgpt_jax.data.curation import splits
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.training import inputs, networks, sampling, stage_model
from instructgpt_jax.world import labelers, words, write

REWARD, JUDGE = "reward.jsonl", "judge.jsonl"


class SampledModel(NamedTuple):
  """A model whose samples are ranked."""

  stage: str  # workdir
  share: int  # how many of a prompt's completions, in proportion
  prompted: bool = False  # behind the world's prefix


def reward_rankings_path(directory: str) -> str:
  """Returns the path of the reward model's training rankings."""
  return str(pathlib.Path(directory) / REWARD)


def judge_rankings_path(directory: str) -> str:
  """Returns the path of the judge's training rankings."""
  return str(pathlib.Path(directory) / JUDGE)


def held_out_path(directory: str, number: int) -> str:
  """Returns the path of a round's rankings by held-out labelers."""
  return str(pathlib.Path(directory) / f"round_{number}_held_out.jsonl")


def sampled_models(
  directory: str, base: str, number: int
) -> list[SampledModel]:
  """Lists the models whose answers a round of a pipeline ranks.

  Args:
    directory: directory of the pipeline.
    base: workdir of the base model.
    number: number of the round, from 1.
  """
  root = pathlib.Path(directory)
  policy_init = str(root / "policy_init")
  if number == 1:
    return [
      SampledModel(base, 1),
      SampledModel(base, 1, prompted=True),
      SampledModel(policy_init, 4),
    ]
  return [
    SampledModel(base, 1),
    SampledModel(policy_init, 2),
    SampledModel(str(root / f"probe_{number - 1}"), 3),
  ]


def label_round(
  config: configs.PipelineExperiment | configs.LabelsExperiment,
  directory: str,
  number: int,
  models: Sequence[SampledModel],
  world_dir: str,
) -> str:
  """Samples K completions a prompt and has the world's labelers rank them.

  Args:
    config: the experiment.
    directory: directory that receives the rankings, as ordinary files.
    number: number of the round, from 1.
    models: models to sample from.
    world_dir: directory of the world's files.

  Returns:
    The path of the round's rankings.
  """
  path = pathlib.Path(directory) / f"round_{number}.jsonl"
  if path.exists() and pathlib.Path(held_out_path(directory, number)).exists():
    return str(path)
  world = write.load_world(world_dir)
  rng = random.Random(f"labels {config.seed} {number}")
  stage = stage_model.open_stage(models[0].stage, run=config)
  pools = inputs.prompts(config.data, stage.tokenizer)
  chosen = [
    (split, prompt)
    for split, pool, count in (
      ("train", pools.train, config.labeling.prompts),
      ("valid", pools.valid, config.labeling.valid_prompts),
    )
    for prompt in _draw(pool, count, rng)
  ]
  turns = [prompt.turns for _, prompt in chosen]
  pools = _sample_completions(config, models, turns, number)
  lines, others = [], []
  for (split, _), turn, pool in zip(chosen, turns, pools, strict=True):
    text, answers = turn[-1].text, [a for a, _ in pool]
    for out, team in ((lines, labelers.TRAINING), (others, labelers.HELD_OUT)):
      if out is others and split != "valid":
        continue
      labeler = rng.choice(team)
      ratings = labelers.rate_all(
        text,
        answers,
        [ended for _, ended in pool],
        labeler_id=labeler,
        rng=rng,
        world=world,
        noise=config.labeling.noise,
      )
      ranks = labelers.to_ranks(ratings)
      out.append(
        _ranking_record(
          turn, answers, ranks, split, labeler_id=labeler, grades=ratings
        )
      )
  for out, target in (
    (lines, path),
    (others, held_out_path(directory, number)),
  ):
    files.write_jsonl_atomic(target, (r for r in out if _has_pair(r)))
  processes.barrier("rankings")
  return str(path)


def _draw(
  pool: Sequence[records.Prompt], count: int, rng: random.Random
) -> list[records.Prompt]:
  """Draws prompts; none is repeated before all have been drawn."""
  drawn: list[records.Prompt] = []
  while pool and len(drawn) < count:
    drawn += rng.sample(pool, min(count - len(drawn), len(pool)))
  return drawn


def _has_pair(line: dict[str, Any]) -> bool:
  return len(set(line["ranks"])) > 1


def _sample_completions(
  config: configs.PipelineExperiment | configs.LabelsExperiment,
  from_: Sequence[SampledModel],
  turns: Sequence[tuple[records.Turn, ...]],
  number: int,
) -> list[list[tuple[str, bool]]]:
  """Samples K (answer, ended) a prompt, and drops empty answers."""
  mesh = mesh_lib.make_mesh(config.mesh)
  total = config.labeling.completions
  shares = [s.share for s in from_]
  counts = [max(1, total * s // sum(shares)) for s in shares]
  counts[-1] = max(1, total - sum(counts[:-1]))
  pools: list[list[tuple[str, bool]]] = [[] for _ in turns]
  with Progress(
    sum(counts) * len(turns),
    f"labels {number}",
    unit="answer",
    compiles=True,
  ) as progress:
    for place, (source, count) in enumerate(zip(from_, counts, strict=True)):
      stage = stage_model.open_stage(
        source.stage, kind=stage_model.LANGUAGE, run=config
      )
      prefix = (records.Turn("system", words.PREFIX),) * source.prompted
      key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(config.seed), 1000 + number), place
      )
      rollout = sampling.respond(
        stage.network,
        networks.load_params(stage, mesh),
        encoding.encode_prompts(
          [prefix + t for t in turns], stage.tokenizer, config.data
        ),
        key,
        sampling=sampling.sampling_params(
          stage.tokenizer,
          max_new_tokens=config.data.max_response_tokens,
          samples=count,
          batch_size=config.evaluation.batch_size,
        ),
        mesh=mesh,
        on_progress=progress.update,
      )
      answers = sampling.texts(rollout, stage.tokenizer)
      for i, answer in enumerate(answers):
        if answer.strip():
          pools[i // count].append((answer, bool(rollout.ended[i])))
  return pools


def split_for_judge(
  config: configs.PipelineExperiment, directory: str, tokenizer: Tokenizer
) -> None:
  """Splits the user's rankings between the reward model and the judge.

  Each has its own held-out rankings. The results are ordinary files.
  """
  paths = reward_rankings_path(directory), judge_rankings_path(directory)
  if all(pathlib.Path(p).exists() for p in paths):
    return
  pools = inputs.rankings(config.data, tokenizer)
  parts: dict[str, list[dict[str, Any]]] = {p: [] for p in paths}
  rankings = [ranking for pool in pools for ranking in pool]
  hashed = [dataclasses.replace(ranking, split="") for ranking in rankings]
  splitter = splits.Splitter(hashed, config.data)
  for split, pool in pools._asdict().items():
    if split == "test":
      continue
    for ranking in pool:
      drawn = splits.hash_fraction("judge:" + splitter.group_of(ranking))
      mine = drawn >= config.evaluation.judge_fraction
      parts[paths[0] if mine else paths[1]].append(
        _ranking_record(
          ranking.turns,
          ranking.completions,
          ranking.ranks,
          split,
          user_id=ranking.user_id,
          labeler_id=ranking.labeler_id,
          grades=ranking.grades,
        )
      )
  for path, lines in parts.items():
    if not any(line["split"] == "train" for line in lines):
      raise UserError(
        f"{sum(map(len, pools))} rankings are too few for a reward model and"
        " a judge",
        field="data.comparisons",
        fix="give more rankings, or change --evaluation.judge_fraction",
        code="too_few_rankings",
      )
    files.write_jsonl_atomic(path, lines)


def _ranking_record(
  turns: Sequence[records.Turn],
  completions: Iterable[str],
  ranks: Iterable[int],
  split: str,
  **optional: Any,
) -> dict[str, Any]:
  """Returns a ranking as a line of a file, without empty optional fields."""
  return {
    "prompt": [{"role": t.role, "content": t.text} for t in turns],
    "completions": list(completions),
    "ranks": list(ranks),
    "split": split,
    **{name: value for name, value in optional.items() if value},
  }


def read_encoded(
  path: str, tokenizer: Tokenizer, data: configs.Data, split: str
):
  """Reads and encodes the rankings of one split of a file written here."""
  rankings, _ = reading.read_rankings(path)
  return encoding.encode_rankings(
    [r for r in rankings if r.split == split], tokenizer, data
  )
