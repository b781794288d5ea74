"""Samples answers, and has the embedded world's labelers rank them."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, reading, records
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import processes
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress, log_line
from instructgpt_jax.training import inputs, networks, sampling, stage_model
from instructgpt_jax.world import labelers, words, write
from instructgpt_jax.world.facts import World


class SampledModel(NamedTuple):
  """A model whose samples are ranked."""

  workdir: str
  share: int  # how many of a prompt's completions, in proportion
  prompted: bool = False  # behind the world's prefix


def round_path(directory: str, number: int) -> str:
  """Returns the path of a round's rankings."""
  return str(pathlib.Path(directory) / f"round_{number}.jsonl")


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
  paths = round_path(directory, number), held_out_path(directory, number)
  if all(pathlib.Path(path).exists() for path in paths):
    return paths[0]
  world = write.load_world(world_dir)
  rng = random.Random(f"labels {config.seed} {number}")
  stage = stage_model.open_stage(models[0].workdir, run=config)
  prompts = inputs.prompts(config.data, stage.tokenizer)
  chosen = [
    (split, prompt)
    for split, pool, count in (
      ("train", prompts.train, config.labeling.prompts),
      ("valid", prompts.valid, config.labeling.valid_prompts),
    )
    for prompt in _draw(pool, count, rng)
  ]
  pools = _sample_completions(
    config, models, [prompt.turns for _, prompt in chosen], number
  )
  by_team: dict[Sequence[str], list[dict[str, Any]]] = {
    labelers.TRAINING: [],
    labelers.HELD_OUT: [],
  }
  for (split, prompt), pool in zip(chosen, pools, strict=True):
    for team, ranked in by_team.items():
      if team == labelers.TRAINING or split == "valid":
        ranked.append(_rank(prompt, pool, split, team, rng, world, config))
  for path, ranked in zip(paths, by_team.values(), strict=True):
    with_pair = [line for line in ranked if len(set(line["ranks"])) > 1]
    files.write_jsonl_atomic(path, with_pair)
    log_line(
      f"{pathlib.Path(path).name}: {len(with_pair):,} rankings;"
      f" {len(ranked) - len(with_pair):,} more have no two different ranks"
    )
  processes.barrier("rankings")
  return paths[0]


def _rank(
  prompt: records.Prompt,
  pool: Sequence[tuple[str, bool]],
  split: str,
  team: Sequence[str],
  rng: random.Random,
  world: World,
  config: configs.PipelineExperiment | configs.LabelsExperiment,
) -> dict[str, Any]:
  """Returns the ranking of (answer, ended) by a random labeler of a team."""
  labeler = rng.choice(team)
  answers = [answer for answer, _ in pool]
  ratings = labelers.rate_all(
    prompt.turns[-1].text,
    answers,
    [ended for _, ended in pool],
    labeler_id=labeler,
    rng=rng,
    world=world,
    noise=config.labeling.noise,
  )
  return ranking_record(
    prompt.turns,
    answers,
    labelers.to_ranks(ratings),
    split,
    labeler_id=labeler,
    grades=ratings,
  )


def _draw(
  pool: Sequence[records.Prompt], count: int, rng: random.Random
) -> list[records.Prompt]:
  """Draws prompts; none is repeated before all have been drawn."""
  drawn: list[records.Prompt] = []
  while pool and len(drawn) < count:
    drawn += rng.sample(pool, min(count - len(drawn), len(pool)))
  return drawn


def _sample_completions(
  config: configs.PipelineExperiment | configs.LabelsExperiment,
  models: Sequence[SampledModel],
  turns: Sequence[tuple[records.Turn, ...]],
  number: int,
) -> list[list[tuple[str, bool]]]:
  """Samples K (answer, ended) a prompt, and drops empty answers."""
  mesh = mesh_lib.make_mesh(config.mesh)
  total = config.labeling.completions
  counts = divide_completions(total, [model.share for model in models])
  pools: list[list[tuple[str, bool]]] = [[] for _ in turns]
  with Progress(
    sum(counts) * len(turns),
    f"labels {number}",
    unit="answer",
    compiles=True,
  ) as progress:
    for index, (model, count) in enumerate(zip(models, counts, strict=True)):
      if not count:
        continue
      stage = stage_model.open_stage(
        model.workdir, kind=stage_model.LANGUAGE, run=config
      )
      prefix = (records.Turn("system", words.PREFIX),) * model.prompted
      key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(config.seed), 1000 + number), index
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


def divide_completions(total: int, shares: Sequence[int]) -> list[int]:
  """Divides a prompt's completions among models, in proportion to shares.

  Each model has at least one, and the last one the remainder. Where there are
  fewer completions than models, those with the smallest shares have none.
  """
  counts = [max(1, total * share // sum(shares)) for share in shares]
  counts[-1] = max(1, total - sum(counts[:-1]))
  for index in sorted(range(len(shares)), key=shares.__getitem__):
    counts[index] -= sum(counts) > total
  return counts


def ranking_record(
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
) -> list[encoding.EncodedRanking]:
  """Reads and encodes the rankings of one split of a file written here."""
  rankings, _ = reading.read_rankings(path)
  return encoding.encode_rankings(
    [r for r in rankings if r.split == split], tokenizer, data
  )
