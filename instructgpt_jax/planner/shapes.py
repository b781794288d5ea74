"""Networks in training and batches, by the shapes of their arrays."""

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
from instructgpt_jax.planner.work import Pass
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training import networks
from instructgpt_jax.types import AttentionSpan, LanguageBatch, PyTree

VOCABULARY = 50_257  # GPT-2's and GPT-3's byte pairs
UPDATES = 1000  # of a schedule; no shape depends on it


def shaped(
  model: configs.Model, config: configs.Experiment, mesh: AnyMesh
) -> configs.Model:
  """A network with a vocabulary, filled up for the mesh."""
  size = model.vocab_size
  if not size and model.d_model >= presets.model("125m").d_model:
    size = VOCABULARY
  size = size or config.tokenizer.vocab_size
  shards = mesh.shape["tensor"] * mesh.shape["fsdp"]
  padding = max(model.vocab_padding, -size % shards)
  return dataclasses.replace(model, vocab_size=size, vocab_padding=padding)


def split_rows(mesh: AnyMesh, tree: Any) -> Any:
  """Shapes of a batch, split over its rows."""
  split = sharding.batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), tree
  )


def ints(*shape: int) -> jax.ShapeDtypeStruct:
  """Shape of int32."""
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def language_batch(mesh: AnyMesh, rows: int, length: int) -> LanguageBatch:
  """Packed rows [rows, length]."""
  ids = ints(rows, length)
  weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
  return split_rows(
    mesh,
    LanguageBatch(tokens=ids, segments=ids, positions=ids, weights=weights),
  )


@dataclasses.dataclass(frozen=True)
class Network:
  """A network in training, by shapes."""

  frozen: PyTree
  state: state_lib.TrainState

  @property
  def whole(self) -> PyTree:
    """All of its parameters."""
    return lora.merge_trees(self.frozen, self.state.params)


def in_training(
  network: networks.Network,
  optimizer: optax.GradientTransformation,
  mesh: AnyMesh,
) -> Network:
  """A network and its optimiser's state on a mesh."""
  whole = networks.abstract_params(network, mesh)
  frozen, trained = lora.split(network.config, whole)
  state = jax.eval_shape(lambda p: state_lib.new_state(p, optimizer), trained)
  places = networks.shardings(network, state, mesh)
  return Network(frozen, networks.with_shardings(state, places))


def parameters(tree: PyTree) -> int:
  """How many numbers a tree has."""
  return sum(x.size for x in jax.tree.leaves(tree))


def training(
  network: Network,
  model: configs.Model,
  rows: int,
  microbatch: int,
  *,
  length: int,
  logits: int = 0,
  reach: AttentionSpan | None = None,
) -> Pass:
  """The passes of an update over its rows, by microbatches (0 is one)."""
  part = microbatch if 0 < microbatch < rows else rows
  return Pass(
    kind="train",
    model=model,
    rows=part,
    length=length,
    times=rows // part,
    logits=logits,
    trained=parameters(network.state.params),
    reach=reach,
  )


def chunks(
  model: configs.Model, mesh: AnyMesh, tokens: int, used: int | None = None
) -> int:
  """Of the vocabulary's loss on so many tokens, some of which carry loss."""
  shards = sharding.batch_shards(mesh)
  here, used = (-(-n // shards) for n in (tokens, used or tokens))
  return -(-used // chunked.chunk_size(here, model.padded_vocab_size))


def held(network: Network, name: str = "") -> dict[str, PyTree]:
  """What a network in training takes all the time."""
  name = f"{name} " if name else ""
  found = {
    f"{name}parameters": network.state.params,
    f"{name}optimiser": network.state.opt_state,
  }
  if network.frozen:
    found[f"{name}frozen parameters"] = network.frozen
  return found
