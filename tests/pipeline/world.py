"""The whole pipeline in miniature on the world, once for all tests."""

import collections
import contextlib
import json
import logging
import re

import jax
import pytest

from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.pipeline import stages
from instructgpt_jax.pipeline.workdir import Pipeline

COMPILED = "compiled.json"
SMALL = {
  "model.num_layers": 1,
  "model.d_model": 16,
  "pretrain.steps": 6,
  "pretrain.batch_size": 4,
  "pretrain.eval_every": 3,
  "sft.epochs": 1,
  "policy_init.epochs": 1,
  "labeling.prompts": 16,
  "labeling.valid_prompts": 8,
  "labeling.completions": 3,
  "labeling.rounds": 2,
  "labeling.probe_episodes": 8,
  "ppo.episodes": 16,
  "ppo.rollout_batch": 8,
  "ppo.minibatch": 4,
  "ppo.ptx_ratio": 1,
  "ppo.ptx_microbatch": 4,
  "evaluation.prompts": 12,
  "evaluation.samples": 2,
  "evaluation.best_of_n": 2,
  "evaluation.prefix_prompts": 6,
  "evaluation.bootstrap": 100,
  "world.pretraining_tokens": 12_000,
  "world.demonstrations": 40,
  "world.public_comparisons": 40,
  "world.train_prompts": 60,
  "world.test_prompts": 40,
  "run.tensorboard": False,
}


def small(preset, **more):
  return flags.replace(presets.pipeline(preset), SMALL | more)


class Compilations(logging.Handler):
  """Counts JAX's compilations by (stage, program, shapes of arguments)."""

  def __init__(self):
    super().__init__()
    self.stage = ""
    self.counts = collections.Counter()

  def emit(self, record):
    match = re.match(
      r"Compiling jit\((\w+)\) with global shapes and types (.*?)\. Arg",
      record.getMessage(),
      re.DOTALL,
    )
    if match:
      self.counts[self.stage, *match.groups()] += 1


def run_and_observe(folder):
  compilations = Compilations()
  logger = logging.getLogger("jax._src.interpreters.pxla")
  timed = Pipeline.record_time

  @contextlib.contextmanager
  def noted(self, name):
    compilations.stage = name
    with timed(self, name):
      yield

  logger.addHandler(compilations)
  logger.propagate = False
  with pytest.MonkeyPatch.context() as patch, jax.log_compiles():
    patch.setattr(Pipeline, "record_time", noted)
    stages.run(small("world"), str(folder))
  logger.removeHandler(compilations)
  logger.propagate = True
  counts = [[*key, times] for key, times in compilations.counts.items()]
  (folder / COMPILED).write_text(json.dumps(counts))
