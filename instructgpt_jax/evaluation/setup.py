"""Builds the evaluator of a run: judge, prompts, prefixes, documents, tasks."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt_jax import configs
from instructgpt_jax.data import packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.evaluation import judges
from instructgpt_jax.evaluation.evaluator import Evaluator, load_model
from instructgpt_jax.evaluation.tasks import item_files
from instructgpt_jax.evaluation.tasks.registry import Questions
from instructgpt_jax.runs import files
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import inputs
from instructgpt_jax.training.held_out import load_scorer
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.world import write


def build_evaluator(
  config: configs.EvaluateExperiment | configs.PipelineExperiment,
  *,
  tokenizer: Tokenizer,
  start: Stage,
  rewards: Sequence[Stage],
  ensemble: configs.RewardModels | None = None,
  judge: Stage | None = None,
  world: str = "",
) -> Evaluator:
  """Builds the evaluator that every model of a run is measured with.

  Documents are left out: `held_out_rows` packs them.

  Args:
    config: the experiment; its data, evaluation, mesh and seed are used.
    tokenizer: tokenizer of all models.
    start: the policy's initialisation.
    rewards: the reward model, or several.
    ensemble: how the scores of several are combined.
    judge: reward model that judges answers; unused with a world.
    world: directory of the embedded world, whose gold labeler judges answers;
      "" outside it.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  facts, tasks = None, []
  prefixes = split_phrases(config.evaluation.prefixes)
  answer_judge: judges.Judge
  if world:
    facts = write.load_world(world)
    paths = write.world_files(world)
    answer_judge = judges.GoldJudge(facts)
    tasks = [
      Questions(
        item_files.make_task(kind, config.data.max_response_tokens), items
      )
      for kind, items in item_files.read_items(paths.tasks).items()
    ]
    prefixes = prefixes or list(files.read_json(paths.world)["prefixes"])
  elif judge is not None:
    answer_judge = judges.RewardModelJudge(judge, mesh)
  else:
    raise ValueError("neither a world nor a judge")
  prompts = inputs.evaluation_prompts(
    config.data, tokenizer, config.evaluation, config.seed
  )
  return Evaluator(
    seed=config.seed,
    data=config.data,
    settings=config.evaluation,
    mesh=mesh,
    tokenizer=tokenizer,
    start=load_model(start, mesh),
    reward=load_scorer(rewards, mesh, ensemble),
    judge=answer_judge,
    prompts=prompts.measured,
    prefix_prompts=prompts.choosing,
    prefixes=prefixes,
    tasks=tasks,
    world=facts,
  )


def held_out_rows(
  data: configs.Data,
  tokenizer: Tokenizer,
  length: int,
  *,
  split: str = "test",
  max_rows: int,
) -> packing.Rows:
  """Packs held-out documents, or training documents if `split` is train."""
  documents = documents_lib.open_documents(data)
  split = documents_lib.held_out_split(documents, split)
  return documents.split_rows(split, tokenizer, length, max_rows)


def split_phrases(text: str) -> list[str]:
  """Splits a list separated by |."""
  return [part.strip() for part in text.split("|") if part.strip()]
