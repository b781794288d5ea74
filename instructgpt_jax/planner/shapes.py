"""Shapes of networks in training and of batches, with shardings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import presets
from instructgpt_jax.distributed.mesh import AnyMesh
from instructgpt_jax.losses import chunked
from instructgpt_jax.models import lora
from instructgpt_jax.planner.workload import Pass
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training import networks
from instructgpt_jax.types import AttentionSpan, LanguageBatch, PyTree

VOCABULARY = 50_257  # GPT-2's and GPT-3's byte pairs
UPDATES = 1000  # length of the schedule; no shape depends on it


def with_vocabulary(
  model: configs.Model, config: configs.Experiment, mesh: AnyMesh
) -> configs.Model:
  """Sets a model's vocabulary size, padded for the mesh."""
  size = model.vocab_size
  if not size and model.d_model >= presets.model("125m").d_model:
    size = VOCABULARY
  size = size or config.tokenizer.vocab_size
  shards = mesh.shape["tensor"] * mesh.shape["fsdp"]
  padding = max(model.vocab_padding, -size % shards)
  return dataclasses.replace(model, vocab_size=size, vocab_padding=padding)


def shard_batch(mesh: AnyMesh, tree: Any) -> Any:
  """Shards the shapes of a batch over its rows."""
  batch_sharding = sharding.batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding),
    tree,
  )


def int32_shape(*shape: int) -> jax.ShapeDtypeStruct:
  """Returns the shape of an int32 array."""
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def language_batch(mesh: AnyMesh, rows: int, length: int) -> LanguageBatch:
  """Returns the shapes of a batch of packed rows [rows, length]."""
  ids = int32_shape(rows, length)
  weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
  return shard_batch(
    mesh,
    LanguageBatch(tokens=ids, segments=ids, positions=ids, weights=weights),
  )


@dataclasses.dataclass(frozen=True)
class AbstractNetwork:
  """Shapes of a network in training: frozen parameters and train state."""

  frozen: PyTree
  state: state_lib.TrainState

  @property
  def all_params(self) -> PyTree:
    """Returns frozen and trained parameters as one tree."""
    return lora.merge_trees(self.frozen, self.state.params)


def abstract_network(
  network: networks.Network,
  optimizer: optax.GradientTransformation,
  mesh: AnyMesh,
) -> AbstractNetwork:
  """Returns the shapes of a network and its optimizer state on a mesh."""
  params = networks.abstract_params(network, mesh)
  frozen, trained = lora.split(network.config, params)
  state = jax.eval_shape(lambda p: state_lib.new_state(p, optimizer), trained)
  shardings = networks.shardings(network, state, mesh)
  return AbstractNetwork(frozen, networks.with_shardings(state, shardings))


def num_params(tree: PyTree) -> int:
  """Counts the elements of a tree's arrays."""
  return sum(x.size for x in jax.tree.leaves(tree))


def training_pass(
  network: AbstractNetwork,
  model: configs.Model,
  rows: int,
  microbatch: int,
  *,
  length: int,
  logits: int = 0,
  span: AttentionSpan | None = None,
) -> Pass:
  """Returns the passes of an update over its rows, by microbatches.

  A microbatch of 0 is all rows.
  """
  size = microbatch if 0 < microbatch < rows else rows
  return Pass(
    kind="train",
    model=model,
    rows=size,
    length=length,
    count=rows // size,
    logits=logits,
    trained_params=num_params(network.state.params),
    span=span,
  )


def loss_chunks(
  model: configs.Model, mesh: AnyMesh, tokens: int, used: int | None = None
) -> int:
  """Returns the number of chunks of the loss over the vocabulary.

  Args:
    model: the network.
    mesh: the mesh.
    tokens: tokens of a batch.
    used: tokens among them that carry loss; all if None.
  """
  shards = sharding.batch_shards(mesh)
  local_tokens, local_used = (-(-n // shards) for n in (tokens, used or tokens))
  return -(
    -local_used // chunked.chunk_size(local_tokens, model.padded_vocab_size)
  )


def resident_trees(
  network: AbstractNetwork, name: str = ""
) -> dict[str, PyTree]:
  """Returns the arrays of a network in training by name."""
  name = f"{name} " if name else ""
  trees = {
    f"{name}parameters": network.state.params,
    f"{name}optimiser": network.state.opt_state,
  }
  if network.frozen:
    trees[f"{name}frozen parameters"] = network.frozen
  return trees
