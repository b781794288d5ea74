"""Set-up of a PPO run: stages, networks, parameters, state, programs, data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching, packing
from instructgpt_jax.data.records import Prompt
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.steps import diagnostics
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps.ppo_networks import BaseParams, Networks
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  mixed_sources,
  ppo_programs,
  stage_model,
  supervised,
)
from instructgpt_jax.training import networks as networks_lib
from instructgpt_jax.training import prompts as prompts_lib
from instructgpt_jax.training.held_out import Scorer, load_scorer
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
  valid_prompts: Sequence[Prompt]  # for held-out evaluations and samples
  ptx: grain.DatasetIterator | None  # pretraining documents; None if γ is 0
  fingerprint: fingerprint.Fingerprint


@dataclasses.dataclass(frozen=True)
class PpoRun:
  """What stays the same during a run.

  Attributes:
    config: the experiment.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".
    mesh: the device mesh.
    networks: policy, reward model, value network, and their optimizers.
    programs: the jitted programs of an iteration.
    start: the stage that the policy starts from.
    judge: second reward model, which judges held-out answers, if any.
    frozen: parameters of the "reference", and of each "reward" model.
    base: frozen base parameters below the LoRA adapters of policy and value
      network; empty without adapters.
    checksums: checksums of `frozen`, to check that nothing changes them.
    data: batches of prompts and of pretraining documents.
    schedules: learning rates of policy and value network: updates done → rate.
  """

  config: configs.PpoExperiment
  directory: str
  name: str
  mesh: Mesh
  networks: Networks
  programs: ppo_programs.Programs
  start: Start
  judge: Scorer | None
  frozen: dict[str, PyTree]
  base: BaseParams
  checksums: dict[str, int]
  data: PpoData
  schedules: tuple[Callable[[int], Array], ...]

  @property
  def key(self) -> Array:
    """The random key of the run."""
    return jax.random.key(self.config.seed)


def compute_checksums(frozen: dict[str, PyTree]) -> dict[str, int]:
  """Computes checksums of the frozen models' parameters."""
  return {name: int(_checksum(params)) for name, params in frozen.items()}


def set_up(
  config: configs.PpoExperiment, directory: str, name: str
) -> tuple[PpoRun, PpoState]:
  """Opens the models and the data of a run, and makes its first state.

  Policy and reference start as the model of `init_from`. The value network
  starts from the first reward model, or from that model
  (`ppo.value_from_reward`).

  Args:
    config: the experiment.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".

  Returns:
    What stays the same during the run, and the state before the first update.

  Raises:
    UserError: settings, models or data do not fit together.
  """
  start_stage, reward_stages, judge_stage = _open_stages(config)
  tokenizer = start_stage.tokenizer
  mesh = mesh_lib.make_mesh(config.mesh)
  networks = _make_networks(config, start_stage, reward_stages)
  params = _load_params(config, networks, start_stage, reward_stages, mesh)
  frozen = {"reference": params.policy.all_params, "reward": params.rewards}
  checksums = compute_checksums(frozen)
  state = _first_state(
    config.ppo, networks, params.policy.trained, params.value.trained, mesh
  )
  run = PpoRun(
    config=config,
    directory=directory,
    name=name,
    mesh=mesh,
    networks=networks,
    programs=ppo_programs.jit_programs(
      config,
      networks,
      state,
      mesh,
      eos_id=tokenizer.stop_ids,
      pad_id=tokenizer.pad_id,
    ),
    start=Start(start_stage, params.policy.adapts),
    judge=load_scorer([judge_stage], mesh) if judge_stage else None,
    frozen=frozen,
    base=BaseParams(params.policy.frozen, params.value.frozen),
    checksums=checksums,
    data=_open_data(config, directory, tokenizer, mesh),
    schedules=tuple(
      optimizer_lib.make_schedule(optimizer, config.ppo.num_updates)
      for optimizer in config.resolved_optimizers
    ),
  )
  return run, state


class _Stages(NamedTuple):
  """The finished stages that a run reads."""

  start: Stage
  rewards: list[Stage]
  judge: Stage | None


def _open_stages(config: configs.PpoExperiment) -> _Stages:
  """Opens the stages that a run reads, after checking settings."""
  checks.check_ppo(config.ppo, config.data, config.model.max_seq_len)
  supervised.require_measured(
    config.run, ["reward", *config.ppo.held_out_metrics]
  )
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
  start = stage_model.open_stage(
    config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
  )
  rewards = stage_model.open_reward_models(config)
  scorers = [(stage, "ppo.reward_model") for stage in rewards]
  judge = None
  if config.ppo.judge:
    judge = stage_model.open_stage(
      config.ppo.judge,
      kind=stage_model.SCALAR,
      field="ppo.judge",
      run=config,
    )
    scorers.append((judge, "ppo.judge"))
  for stage, field in scorers:
    inheritance.require_compatible(stage, start.tokenizer, config.data, field)
  return _Stages(start, rewards, judge)


def _make_networks(
  config: configs.PpoExperiment, start: Stage, rewards: Sequence[Stage]
) -> Networks:
  """Makes the networks and the optimizers of policy and value network.

  If the policy has adapters, the value network has adapters of the same kind.
  """
  policy = LanguageModel(inheritance.model_config(config, start.tokenizer))
  value_config = policy.config
  if config.ppo.value_from_reward:
    value_config = rewards[0].network.config
  value_config = dataclasses.replace(
    value_config,
    lora_rank=policy.config.lora_rank,
    lora_alpha=policy.config.lora_alpha,
    lora_layers=policy.config.lora_layers,
  )
  policy_optimizer, value_optimizer = (
    optimizer_lib.make_optimizer(optimizer, config.ppo.num_updates)
    for optimizer in config.resolved_optimizers
  )
  return Networks(
    policy=policy,
    rewards=tuple(stage.network for stage in rewards),
    value=ScalarModel(value_config),
    policy_optimizer=policy_optimizer,
    value_optimizer=value_optimizer,
  )


class _Params(NamedTuple):
  """Parameters that the run starts from."""

  policy: networks_lib.InitialParams
  value: networks_lib.InitialParams
  rewards: tuple[PyTree, ...]


def _load_params(
  config: configs.PpoExperiment,
  networks: Networks,
  start: Stage,
  rewards: Sequence[Stage],
  mesh: Mesh,
) -> _Params:
  """Loads the parameters of policy, value network and reward models."""
  key = jax.random.key(config.seed)
  loaded: dict[str, PyTree] = {}  # a model that several start from is read once
  policy_params = networks_lib.init_params_from(
    networks.policy, start, key, mesh, loaded
  )
  value_params = networks_lib.init_params_from(
    networks.value,
    rewards[0] if config.ppo.value_from_reward else start,
    key,
    mesh,
    loaded,
  )
  reward_params = tuple(
    networks_lib.load_params(stage, mesh, loaded) for stage in rewards
  )
  return _Params(policy_params, value_params, reward_params)


def _first_state(
  section: configs.Ppo,
  networks: Networks,
  policy_params: PyTree,
  value_params: PyTree,
  mesh: Mesh,
) -> PpoState:
  """Makes the state before the first update.

  The parameters are copied: each update donates the state, while the reference
  and the reward model keep their parameters.

  Args:
    section: the PPO settings.
    networks: the networks and their optimizers.
    policy_params: trained parameters of the policy.
    value_params: trained parameters of the value network.
    mesh: mesh of the parameters.
  """

  def copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)

  policy = networks_lib.train_state(
    networks.policy, copy(policy_params), networks.policy_optimizer, mesh
  )
  value = networks_lib.train_state(
    networks.value, copy(value_params), networks.value_optimizer, mesh
  )
  coefficients = {
    "kl_coef": jnp.float32(section.kl_coef),
    "ptx_coef": jnp.float32(section.ptx_coef),
    "ema_decay": jnp.float32(section.ema_decay),
  }
  return PpoState(
    policy=policy,
    value=value,
    ema=copy(policy_params) if section.ema_decay else {},
    **jax.device_put(coefficients, sharding.replicated(mesh)),
  )


def _open_data(
  config: configs.PpoExperiment,
  directory: str,
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> PpoData:
  """Makes batches of prompts and of pretraining documents."""
  records = inputs.prompts(config.data, tokenizer)
  prompts, prompts_source, prompt_use = prompt_batches(
    config, records.train, tokenizer, mesh
  )
  sources = {"data.prompts": prompts_source}
  if config.ppo.judge:
    sources["ppo.judge"] = fingerprint.fingerprint_model(config.ppo.judge)
  uses, ptx = [prompt_use], None
  if config.ppo.ptx_coef:
    ptx, sources["data.pretraining"], document_use = _document_batches(
      config, tokenizer, mesh
    )
    uses.append(document_use)
  spec = batching.BatchSpec(batch_size=1, seed=config.seed)
  mixed_sources.report_use(directory, spec, *uses)
  counts = {
    "episodes": config.ppo.rollout_batch,
    "iterations": config.ppo.num_iterations,
  }
  return PpoData(
    prompts,
    prompts_lib.held_out_pool(records.valid),
    ptx,
    fingerprint.Fingerprint(counts, sources),
  )


def prompt_batches(
  config: configs.PpoExperiment,
  records: Sequence[Prompt],
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> tuple[grain.DatasetIterator, fingerprint.Source, mixed_sources.Use]:
  """Makes batches of prompts, their fingerprint, and how they are used."""
  prompts = prompts_lib.encode_prompts(records, tokenizer, config.data)
  # All batches have one width, so that each program compiles once.
  width = min(
    max(packing.bucket_lengths(int(prompts.lengths.max()))),
    config.model.max_seq_len - config.data.max_response_tokens,
  )
  batches = batching.prompt_batches(
    prompts.ids,
    batching.BatchSpec(
      batch_size=config.ppo.rollout_batch,
      seed=config.seed,
      mix=prompts.mix,
      **transfer.get_process_shard(config.ppo.rollout_batch, mesh),
    ),
    width=width,
    pad_id=tokenizer.pad_id,
  )
  total = config.ppo.num_iterations * config.ppo.rollout_batch
  amounts = {"tokens": prompts.lengths}
  use = mixed_sources.Use(
    prompts.source, prompts.mix, "prompts", total, amounts
  )
  return batches, prompts.fingerprint, use


def _document_batches(
  config: configs.PpoExperiment, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[grain.DatasetIterator, fingerprint.Source, mixed_sources.Use]:
  """Makes batches of documents, their fingerprint, and how they are used."""
  documents = documents_lib.open_documents(config.data)
  rows, mix = documents.pack(tokenizer, config.ptx_length)
  fingerprinted = documents.fingerprint(rows, "train")
  size = config.ppo.minibatch * config.ppo.ptx_ratio
  batches = batching.language_batches(
    rows,
    batching.BatchSpec(
      batch_size=size,
      seed=config.seed,
      mix=mix,
      **transfer.get_process_shard(size, mesh),
    ),
    pad_id=tokenizer.pad_id,
  )
  total = config.ppo.num_updates * size
  use = mixed_sources.use_of_rows(documents.source, rows, mix, total)
  return batches, fingerprinted, use
