"""What an experiment compiles, with shapes in place of arrays."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from instructgpt_jax import config as config_lib
from instructgpt_jax import presets
from instructgpt_jax.data import pipelines, transforms
from instructgpt_jax.errors import UserError
from instructgpt_jax.loops import (
  inputs,
  networks,
  ppo_programs,
  supervised,
)
from instructgpt_jax.losses import vocabulary
from instructgpt_jax.models import lora
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
from instructgpt_jax.plan.work import Pass, Program, Work
from instructgpt_jax.runtime import mesh as mesh_lib
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import reward as reward_step
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import (
  LanguageBatch,
  PromptBatch,
  PyTree,
  RankingBatch,
)

VOCABULARY = 50_257  # GPT-2's and GPT-3's byte pairs
COMPLETIONS = 9  # K: the paper's labelers rank 4 to 9
_UPDATES = 1000  # of a schedule; no shape depends on it


AnyMesh = Mesh | AbstractMesh


def work(
  config: config_lib.Experiment,
  mesh: AnyMesh,
  reward_model: config_lib.Model | None = None,
) -> Work:
  """The work of an experiment on a mesh, which may be abstract.

  Args:
    config: the experiment.
    mesh: where it would run.
    reward_model: of PPO; the policy's network when None.

  Raises:
    UserError: settings that the experiment refuses, or of another one.
  """
  if isinstance(config, config_lib.PretrainExperiment):
    return _pretrain(config, mesh)
  if isinstance(config, config_lib.SftExperiment):
    return _sft(config, mesh)
  if isinstance(config, config_lib.RewardExperiment):
    return _reward(config, mesh)
  if isinstance(config, config_lib.PpoExperiment):
    return _ppo(config, mesh, reward_model)
  raise UserError(
    "has no programs of its own",
    field="--experiment",
    remedy="give pretrain, sft, policy_init, reward, ppo or ppo_ptx",
  )


def shaped(
  model: config_lib.Model, config: config_lib.Experiment, mesh: AnyMesh
) -> config_lib.Model:
  """A network with a vocabulary, filled up for the mesh."""
  size = model.vocab_size
  if not size and model.width >= presets.model("125m").width:
    size = VOCABULARY
  size = size or config.tokenizer.vocab_size
  shards = mesh.shape["tensor"] * mesh.shape["fsdp"]
  padding = max(model.vocab_padding, -size % shards)
  return dataclasses.replace(model, vocab_size=size, vocab_padding=padding)


def _rows(mesh: AnyMesh, tree: Any) -> Any:
  """Shapes of a batch, split over its rows."""
  split = mesh_lib.batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), tree
  )


def _int(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _language_batch(mesh: AnyMesh, rows: int, length: int) -> LanguageBatch:
  ids = _int(rows, length)
  weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
  return _rows(
    mesh,
    LanguageBatch(tokens=ids, segments=ids, positions=ids, weights=weights),
  )


@dataclasses.dataclass(frozen=True)
class _Network:
  """A network in training, by shapes."""

  frozen: PyTree
  state: state_lib.TrainState

  @property
  def whole(self) -> PyTree:
    return lora.union(self.frozen, self.state.params)


def _in_training(
  network: networks.Network,
  optimizer: optax.GradientTransformation,
  mesh: AnyMesh,
) -> _Network:
  whole = networks.abstract(network, mesh)
  frozen, trained = lora.split(network.config, whole)
  state = jax.eval_shape(lambda p: state_lib.new_state(p, optimizer), trained)
  places = networks.shardings(network, state, mesh)
  return _Network(frozen, networks.with_shardings(state, places))


def _parameters(tree: PyTree) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _pretrain(config: config_lib.PretrainExperiment, mesh: AnyMesh) -> Work:
  section = config.pretrain
  length = inputs.row_length(
    section.sequence, config.model.context, "pretrain.sequence"
  )
  return _language(
    config, mesh, section.batch_size, length, section.microbatch, section
  )


def _sft(config: config_lib.SftExperiment, mesh: AnyMesh) -> Work:
  section = config.sft
  rows = section.batch_size
  if section.pretraining_fraction:
    rows = max(rows + 1, round(rows / (1 - section.pretraining_fraction)))
  length = config.model.context
  return _language(config, mesh, rows, length, section.microbatch, section)


def _language(
  config: config_lib.PretrainExperiment | config_lib.SftExperiment,
  mesh: AnyMesh,
  rows: int,
  length: int,
  microbatch: int,
  section: config_lib.Pretrain | config_lib.Sft,
) -> Work:
  """Every row whole, as packed rows nearly are."""
  rows = mesh_lib.fill(rows, mesh)
  inputs.divides(microbatch, rows, "microbatch")
  shape = shaped(config.model, config, mesh)
  shape = dataclasses.replace(shape, dropout=section.dropout)
  model = LanguageModel(shape)
  optimizer = state_lib.make_optimizer(config.optimizer, _UPDATES)
  network = _in_training(model, optimizer, mesh)

  def step() -> Any:
    function = supervised.step_program(
      language_step.train_step,
      model,
      optimizer,
      network.state,
      mesh,
      seed=config.seed,
      microbatch=microbatch,
    )
    batch = _language_batch(mesh, rows, length)
    return function, (network.state, batch, network.frozen)

  return Work(
    unit="step",
    examples=rows,
    what="rows",
    tokens=rows * length,
    parameters=_parameters(network.whole),
    held=_held(network),
    state=network.state,
    programs=(
      Program(
        name="step",
        make=step,
        times=1,
        trips=_chunks(shape, mesh, (microbatch or rows) * length),
        passes=(
          _training(
            network, shape, rows, microbatch, length=length, logits=length
          ),
        ),
      ),
    ),
    model=shape,
  )


def _training(
  network: _Network,
  model: config_lib.Model,
  rows: int,
  microbatch: int,
  *,
  length: int,
  logits: int = 0,
) -> Pass:
  part = microbatch if 0 < microbatch < rows else rows
  return Pass(
    kind="train",
    model=model,
    rows=part,
    length=length,
    times=rows // part,
    logits=logits,
    trained=_parameters(network.state.params),
  )


def _chunks(model: config_lib.Model, mesh: AnyMesh, tokens: int) -> int:
  """Of the vocabulary's loss, when all tokens carry loss."""
  here = -(-tokens // mesh_lib.batch_shards(mesh))
  return vocabulary.most_chunks(here, model.rows)


def _held(network: _Network, name: str = "") -> dict[str, PyTree]:
  name = f"{name} " if name else ""
  found = {
    f"{name}parameters": network.state.params,
    f"{name}optimiser": network.state.opt_state,
  }
  if network.frozen:
    found[f"{name}frozen parameters"] = network.frozen
  return found


def _reward(config: config_lib.RewardExperiment, mesh: AnyMesh) -> Work:
  """K completions a prompt, all of the longest kind."""
  section = config.reward
  prompts = mesh_lib.fill(section.batch_size, mesh)
  inputs.divides(section.microbatch, prompts, "reward.microbatch")
  shape = shaped(config.model, config, mesh)
  shape = dataclasses.replace(shape, dropout=section.dropout)
  model = ScalarModel(shape)
  optimizer = state_lib.make_optimizer(config.optimizer, _UPDATES)
  network = _in_training(model, optimizer, mesh)
  data = config.data
  count = section.max_completions or COMPLETIONS
  longest = transforms.EncodedRanking(
    [0] * data.max_prompt_tokens,
    [[0] * data.max_response_tokens] * count,
    list(range(count)),
  )
  rows = pipelines.ranking_rows([longest], shape.width)
  length = pipelines.ranking_width(longest, rows)
  tokens, labels = _int(prompts, rows, length), _int(prompts, count)
  batch = _rows(
    mesh,
    RankingBatch(
      tokens=tokens,
      segments=tokens,
      positions=tokens,
      ends=labels,
      ranks=labels,
      valid=jax.ShapeDtypeStruct(labels.shape, jnp.bool_),
    ),
  )

  def step() -> Any:
    function = supervised.step_program(
      reward_step.train_step,
      model,
      optimizer,
      network.state,
      mesh,
      seed=config.seed,
      microbatch=section.microbatch,
    )
    return function, (network.state, batch, network.frozen)

  return Work(
    unit="step",
    examples=prompts * count * (count - 1) // 2,
    what="comparisons",
    tokens=prompts * rows * length,
    parameters=_parameters(network.whole),
    held=_held(network),
    state=network.state,
    programs=(
      Program(
        name="step",
        make=step,
        times=1,
        trips=1,
        passes=(
          _training(
            network,
            shape,
            prompts * rows,
            section.microbatch * rows,
            length=length,
          ),
        ),
      ),
    ),
    model=shape,
  )


def _ppo(
  config: config_lib.PpoExperiment,
  mesh: AnyMesh,
  reward_model: config_lib.Model | None,
) -> Work:
  """Prompts and responses of full length."""
  section, data = config.ppo, config.data
  inputs.fits(data, config.model.context)
  ppo_programs.divides(section)
  shape = shaped(config.model, config, mesh)
  scores = shaped(reward_model or config.model, config, mesh)
  adapters = {
    n: getattr(shape, n) for n in ("lora_rank", "lora_alpha", "lora_layers")
  }
  first = scores if section.value_from_reward else shape
  models = (
    LanguageModel(shape),
    ScalarModel(scores),
    ScalarModel(dataclasses.replace(first, **adapters)),
  )
  optimizers = [
    state_lib.make_optimizer(o, _UPDATES)
    for o in (config.optimizer, config.value_optimizer)
  ]
  policy = _in_training(models[0], optimizers[0], mesh)
  value = _in_training(models[2], optimizers[1], mesh)
  scalar = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=mesh_lib.replicated(mesh)
  )
  state = state_lib.PpoState(
    policy=policy.state,
    value=value.state,
    ema=policy.state.params if section.ema_decay else {},
    kl_coef=scalar,
    ptx_coef=scalar,
  )
  programs = ppo_programs.jitted(
    config, models, optimizers, state, mesh, eos_id=0, pad_id=1
  )
  start = networks.abstract(
    LanguageModel(dataclasses.replace(shape, lora_rank=0)), mesh
  )
  reward_params = networks.abstract(models[1], mesh)
  width = max(transforms.bucket_sizes(data.max_prompt_tokens))
  width = min(width, config.model.context - data.max_response_tokens)
  answer = data.max_response_tokens
  count, length = section.rollout_batch, width + answer
  ids = _int(count, width)
  prompts = _rows(
    mesh,
    PromptBatch(
      tokens=ids,
      mask=jax.ShapeDtypeStruct(ids.shape, jnp.bool_),
      ids=_int(count),
    ),
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  sampling = (policy.whole, prompts, key)

  @functools.cache
  def scoring() -> Any:
    rollout = _rows(mesh, jax.eval_shape(programs.generate, *sampling))
    return rollout, start, reward_params, value.whole, scalar

  def updating() -> Any:
    held = jax.eval_shape(programs.experience, *scoring())[0]
    rows = jax.ShapeDtypeStruct((section.minibatch,), jnp.int32)
    below = policy.frozen, value.frozen
    return programs.update, (state, _rows(mesh, held), rows, ptx, *below)

  ptx, ptx_length = None, 0
  passes = [
    _training(
      network,
      own,
      section.minibatch,
      section.microbatch,
      length=length,
      logits=logits,
    )
    for network, own, logits in (
      (policy, shape, answer),
      (value, models[2].config, 0),
    )
  ]
  if section.ptx_coef:
    ptx_length = inputs.row_length(
      section.ptx_sequence, config.model.context, "ppo.ptx_sequence"
    )
    ptx_rows = section.minibatch * section.ptx_ratio
    ptx = _language_batch(mesh, ptx_rows, ptx_length)
    passes.append(
      _training(
        policy,
        shape,
        ptx_rows,
        section.ptx_microbatch,
        length=ptx_length,
        logits=ptx_length,
      )
    )
  updates = section.inner_epochs * (section.rollout_batch // section.minibatch)
  held = _held(policy, "policy")
  if section.ema_decay:
    held["policy average"] = state.ema
  held |= _held(value, "value")
  if not policy.frozen:  # else it is the reference itself
    held["reference"] = start
  held["reward model"] = reward_params
  trained = section.inner_epochs * count * length
  if ptx is not None:
    trained += updates * ptx.tokens.size
  return Work(
    unit="iteration",
    examples=count,
    what="episodes",
    episodes=section.episodes,
    tokens=trained,
    parameters=_parameters(policy.whole),
    held=held,
    state=state,
    programs=(
      Program(
        name="sample",
        make=lambda: (programs.generate, sampling),
        times=1,
        trips=answer - 1,
        passes=(
          Pass(kind="forward", model=shape, rows=count, length=width, logits=1),
          Pass(
            kind="decode",
            model=shape,
            rows=count,
            length=length,
            times=answer - 1,
            logits=1,
          ),
        ),
      ),
      Program(
        name="score",
        make=lambda: (programs.experience, scoring()),
        times=1,
        trips=_chunks(shape, mesh, count * answer),
        passes=(
          Pass(
            kind="forward",
            model=shape,
            rows=count,
            length=length,
            logits=answer,
          ),
          *(
            Pass(kind="forward", model=m.config, rows=count, length=length)
            for m in models[1:]
          ),
        ),
      ),
      Program(
        name="update",
        make=updating,
        times=updates,
        trips=_chunks(
          shape,
          mesh,
          (section.ptx_microbatch or section.minibatch) * ptx_length
          or (section.microbatch or section.minibatch) * answer,
        ),
        passes=tuple(passes),
      ),
    ),
    model=shape,
  )
