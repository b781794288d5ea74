"""Sets a PPO run up: stages, networks, parameters, state, programs and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching, encoding, packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.steps import diagnostics
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps.ppo import BaseParams, Networks
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  ppo_programs,
  stage_model,
  supervised,
)
from instructgpt_jax.training import networks as networks_lib
from instructgpt_jax.training.lora_base import LoraBase
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import Array, PyTree

_checksum = jax.jit(diagnostics.params_checksum)


class Start(NamedTuple):
  """The stage that the policy starts from."""

  stage: Stage
  adapts: LoraBase | None  # base model of the policy's adapters


class PpoData(NamedTuple):
  """Batches of this process, and the fingerprint of their sources."""

  prompts: grain.DatasetIterator
  ptx: grain.DatasetIterator | None
  fingerprint: fingerprint.Fingerprint


@dataclasses.dataclass(frozen=True)
class PpoRun:
  """What stays the same during a run.

  Attributes:
    config: the experiment.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".
    mesh: the device mesh.
    networks: policy, reward model and value network.
    programs: the compiled programs of an iteration.
    start: the stage that the policy starts from.
    frozen: parameters of the "reference" and of the "reward" model.
    base: frozen parameters below LoRA adapters.
    checksums: checksums of `frozen`.
    data: prompts and pretraining documents.
  """

  config: configs.PpoExperiment
  directory: str
  name: str
  mesh: Mesh
  networks: Networks
  programs: ppo_programs.Programs
  start: Start
  frozen: dict[str, PyTree]
  base: BaseParams
  checksums: dict[str, int]
  data: PpoData

  @property
  def updates_per_iteration(self) -> int:
    """Number of updates of an iteration."""
    return ppo_programs.updates_per_iteration(self.config.ppo)

  @property
  def iterations(self) -> int:
    """Number of iterations."""
    return num_iterations(self.config.ppo)

  @property
  def total_updates(self) -> int:
    """Number of updates of the run."""
    return self.iterations * self.updates_per_iteration

  @property
  def key(self) -> Array:
    """The random key of the run."""
    return jax.random.key(self.config.seed)

  @property
  def schedules(self) -> list[Callable[[int], Array]]:
    """Learning-rate schedules of policy and value network."""
    return [
      optimizer_lib.make_schedule(optimizer, self.total_updates)
      for optimizer in ppo_programs.optimizer_configs(self.config)
    ]


def num_iterations(section: configs.Ppo) -> int:
  """Counts the iterations that have `episodes` episodes, or a few more."""
  return -(-section.episodes // section.rollout_batch)


def checksums(frozen: dict[str, PyTree]) -> dict[str, int]:
  """Computes checksums of the frozen models' parameters."""
  return {name: int(_checksum(params)) for name, params in frozen.items()}


def set_up(
  config: configs.PpoExperiment, directory: str, name: str
) -> tuple[PpoRun, PpoState]:
  """Opens the models and the data of a run, and makes its first state.

  Args:
    config: the experiment.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".

  Raises:
    UserError: settings, models or data do not fit together.
  """
  start_stage, reward_stage = _open_stages(config)
  tokenizer = start_stage.tokenizer
  mesh = mesh_lib.make_mesh(config.mesh)
  networks = _networks(config, start_stage, reward_stage)
  key = jax.random.key(config.seed)
  loaded: dict[str, PyTree] = {}  # networks may share a base model
  policy_start = networks_lib.init_params_from(
    networks.policy, start_stage, key, mesh, loaded
  )
  value_stage = start_stage
  if config.ppo.value_from_reward:
    value_stage = reward_stage
  value_start = networks_lib.init_params_from(
    networks.value, value_stage, key, mesh, loaded
  )
  frozen = {
    "reference": policy_start.all_params,
    "reward": networks_lib.load_params(reward_stage, mesh, loaded),
  }
  frozen_checksums = checksums(frozen)
  state = _first_state(
    config, networks, (policy_start.trained, value_start.trained), mesh
  )
  programs = ppo_programs.jitted(
    config,
    networks,
    state,
    mesh,
    eos_id=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
  )
  run = PpoRun(
    config=config,
    directory=directory,
    name=name,
    mesh=mesh,
    networks=networks,
    programs=programs,
    start=Start(start_stage, policy_start.adapts),
    frozen=frozen,
    base=BaseParams(policy_start.frozen, value_start.frozen),
    checksums=frozen_checksums,
    data=_open_data(config, tokenizer, mesh),
  )
  return run, state


def _open_stages(config: configs.PpoExperiment) -> tuple[Stage, Stage]:
  """Opens the policy's start and the reward model, after checking settings."""
  checks.check_ppo_batches(config.ppo)
  if not config.init_from:
    raise UserError(
      "a policy to start from is needed",
      field="init_from",
      fix="give --init_from=DIR, the workdir of policy_init or sft",
      code="no_policy",
    )
  if not config.ppo.reward_model:
    raise UserError(
      "a reward model is needed",
      field="ppo.reward_model",
      fix="give --ppo.reward_model=DIR, the workdir of a reward stage",
      code="no_reward_model",
    )
  checks.check_lengths(config.data, config.model.max_seq_len)
  start = stage_model.open_stage(
    config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
  )
  reward = stage_model.open_stage(
    config.ppo.reward_model,
    kind=stage_model.SCALAR,
    field="ppo.reward_model",
    run=config,
  )
  supervised.require_measure(config.run, ["reward"])
  inheritance.require_compatible(
    reward, start.tokenizer, config.data, "ppo.reward_model"
  )
  return start, reward


def _networks(
  config: configs.PpoExperiment, start: Stage, reward: Stage
) -> Networks:
  """Makes the networks; the value network has adapters like the policy."""
  policy = LanguageModel(inheritance.model_config(config, start.tokenizer))
  value_config = policy.config
  if config.ppo.value_from_reward:
    value_config = reward.network.config
  value_config = dataclasses.replace(
    value_config,
    lora_rank=policy.config.lora_rank,
    lora_alpha=policy.config.lora_alpha,
    lora_layers=policy.config.lora_layers,
  )
  total = num_iterations(config.ppo) * ppo_programs.updates_per_iteration(
    config.ppo
  )
  policy_optimizer, value_optimizer = (
    optimizer_lib.make_optimizer(optimizer, total)
    for optimizer in ppo_programs.optimizer_configs(config)
  )
  return Networks(
    policy=policy,
    reward=reward.network,
    value=ScalarModel(value_config),
    policy_optimizer=policy_optimizer,
    value_optimizer=value_optimizer,
  )


def _first_state(
  config: configs.PpoExperiment,
  networks: Networks,
  trained: tuple[PyTree, PyTree],
  mesh: Mesh,
) -> PpoState:
  """Makes the state before the first update.

  The parameters are copied: the state is donated to each update, while the
  reference and the reward model keep theirs.
  """

  def copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)

  policy_params, value_params = trained
  policy = networks_lib.train_state(
    networks.policy, copied(policy_params), networks.policy_optimizer, mesh
  )
  value = networks_lib.train_state(
    networks.value, copied(value_params), networks.value_optimizer, mesh
  )
  coefficients = {
    "kl_coef": jnp.float32(config.ppo.kl_coef),
    "ptx_coef": jnp.float32(config.ppo.ptx_coef),
    "ema_decay": jnp.float32(config.ppo.ema_decay),
  }
  return PpoState(
    policy=policy,
    value=value,
    ema=copied(policy_params) if config.ppo.ema_decay else {},
    **jax.device_put(coefficients, sharding.replicated(mesh)),
  )


def _open_data(
  config: configs.PpoExperiment, tokenizer: Tokenizer, mesh: Mesh
) -> PpoData:
  """Makes batches of prompts and of pretraining documents."""
  prompts, prompts_source = prompt_batches(config, tokenizer, mesh)
  sources = {"data.prompts": prompts_source}
  ptx = None
  if config.ppo.ptx_coef:
    ptx, sources["data.pretraining"] = _document_batches(
      config, tokenizer, mesh
    )
  counts = {
    "episodes": config.ppo.rollout_batch,
    "iterations": num_iterations(config.ppo),
  }
  return PpoData(prompts, ptx, fingerprint.Fingerprint(counts, sources))


def prompt_batches(
  config: configs.PpoExperiment, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[grain.DatasetIterator, fingerprint.Source]:
  """Makes batches of prompts, and the fingerprint of their source."""
  records = inputs.prompts(config.data, tokenizer).train
  prompts = encoding.encode_prompts(
    [record.turns for record in records], tokenizer, config.data
  )
  source = fingerprint.fingerprint_source(
    config.data.prompts, prompts, train=len(records)
  )
  width = min(
    max(packing.bucket_lengths(max(map(len, prompts)))),
    config.model.max_seq_len - config.data.max_response_tokens,
  )
  batches = batching.prompt_batches(
    prompts,
    batching.BatchSpec(
      batch_size=config.ppo.rollout_batch,
      seed=config.seed,
      **transfer.get_process_shard(config.ppo.rollout_batch, mesh),
    ),
    width=width,
    pad_id=tokenizer.pad_id,
  )
  return batches, source


def _document_batches(
  config: configs.PpoExperiment, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[grain.DatasetIterator, fingerprint.Source]:
  """Makes batches of documents, and the fingerprint of their source."""
  section = config.ppo
  length = checks.row_length(
    section.ptx_sequence, config.model.max_seq_len, "ppo.ptx_sequence"
  )
  documents = inputs.documents(config.data).train
  rows = inputs.document_rows(documents, tokenizer, length)
  source = fingerprint.fingerprint_source(
    config.data.pretraining, rows, train=len(documents)
  )
  size = section.minibatch * section.ptx_ratio
  batches = batching.language_batches(
    rows,
    batching.BatchSpec(
      batch_size=size,
      seed=config.seed,
      **transfer.get_process_shard(size, mesh),
    ),
    pad_id=tokenizer.pad_id,
  )
  return batches, source
