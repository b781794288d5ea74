"""The workdir of a pipeline: directories, configs and times of its stages."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.errors import UserError, naming_fields
from instructgpt_jax.runs import claims, files
from instructgpt_jax.training import inheritance

SECONDS = "seconds.json"
SOURCES = "sources.json"  # the fingerprint of what the pipeline reads
WORLD = "world"
# Section of the pipeline -> what its stage has under other names.
STAGE_FIELDS: Mapping[str, Mapping[str, str]] = {
  "pretrain": {"optimizer.": "pretrain.optimizer."},
  "policy_init": {
    "optimizer.": "policy_init.optimizer.",
    "sft.": "policy_init.",
  },
  "reward_init": {
    "optimizer.": "reward_init.optimizer.",
    "reward.": "reward_init.",
    "data.comparisons": "reward_init.comparisons",
  },
  "reward": {"optimizer.": "reward.optimizer."},
  "sft": {"optimizer.": "sft.optimizer."},
  "ppo": {
    "optimizer.": "ppo.optimizer.",
    "value_optimizer.": "ppo.value_optimizer.",
  },
  "ppo_ptx": {
    "optimizer.": "ppo_ptx.optimizer.",
    "value_optimizer.": "ppo.value_optimizer.",
  },
}

E = TypeVar("E", bound=configs.Experiment)


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A pipeline's config and the directories of its stages.

  `config.data` names real files, the world's or the user's. `valid` has
  the number of validation records of each source.
  """

  config: configs.PipelineExperiment
  directory: str
  has_gold: bool
  valid: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def stage_dir(self, name: str) -> str:
    """Returns the workdir of a stage."""
    return str(pathlib.Path(self.directory) / name)

  def with_sources(self, **sources: str) -> configs.Data:
    """Returns the data section with other sources."""
    return dataclasses.replace(self.config.data, **sources)

  def stage_config(self, kind: type[E], init_from: str, **sections: Any) -> E:
    """Builds a stage's config; the stage starts from directory `init_from`."""
    config = self.config
    shared = dict(
      seed=config.seed,
      init_from=init_from,
      model=config.model,
      tokenizer=config.tokenizer,
      data=config.data,
      mesh=config.mesh,
      processes=config.processes,
      run=config.run,
    )
    experiment = kind(**(shared | sections))
    return dataclasses.replace(experiment, run=self._run_settings(experiment))

  def _run_settings(self, experiment: configs.Experiment) -> configs.Run:
    """Leaves `keep_best` out where a stage does not measure it."""
    run = self.config.run
    measured: list[str] = []
    if isinstance(experiment, configs.PpoExperiment):
      measured = ["reward", *experiment.ppo.held_out_metrics]
    elif isinstance(experiment, configs.PretrainExperiment):
      measured = ["valid_loss"] * bool(self.valid.get("data.pretraining"))
    elif isinstance(experiment, configs.SftExperiment):
      measured = ["valid_loss"] * bool(self.valid.get("data.demonstrations"))
      if experiment.sft.reward_model:
        measured.append("valid_rm_score")
    if run.keep_best in measured:
      return run
    return dataclasses.replace(run, keep_best=None)

  def run_stage(
    self,
    name: str,
    experiment: str,
    config: E,
    run: Callable[[E, str], None],
    *,
    section: str,
  ) -> None:
    """Runs a stage in its directory, as the stage's own command would.

    Args:
      name: name of the stage's directory.
      experiment: name of its command.
      config: its config.
      run: trains.
      section: key of STAGE_FIELDS; errors name the pipeline's fields.
    """
    directory = self.stage_dir(name)
    with self.record_time(name), naming_fields(STAGE_FIELDS[section]):
      config = inheritance.inherit_architecture(config)
      values = flags.config_to_dict(config)
      with claims.claim(directory, experiment, values):
        run(config, directory)

  @contextmanager
  def record_time(self, name: str) -> Iterator[None]:
    """Adds up the wall time of a stage over calls, in seconds.json.

    A stage that a user error ends before it has made anything does not count.
    """
    began, counts = time.monotonic(), True
    try:
      yield
    except UserError:
      counts = os.path.isdir(self.stage_dir(name))
      raise
    finally:
      if counts:
        self._add_seconds(name, time.monotonic() - began)

  def _add_seconds(self, name: str, spent: float) -> None:
    path = pathlib.Path(self.directory) / SECONDS
    seconds = files.read_json(path) if path.exists() else {}
    # The time of a skipped stage is negligible.
    if name not in seconds or spent > 1:
      seconds[name] = seconds.get(name, 0.0) + spent
      files.write_json_atomic(path, seconds)
