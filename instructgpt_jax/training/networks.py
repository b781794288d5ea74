"""Parameters and train states, placed on the mesh."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from instructgpt_jax import sharding
from instructgpt_jax.distributed import compiler_options
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub
from instructgpt_jax.models import lora, transformer
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training.lora_base import LoraBase, base_checksum
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import Array, PyTree

Network = transformer.LanguageModel | transformer.ScalarModel


def shardings(network: Network, tree: PyTree, mesh: mesh_lib.AnyMesh) -> PyTree:
  """Where each array of a tree of (or around) the network's parameters lies."""
  axes = sharding.logical_axes(transformer.abstract_params(network))
  return sharding.state_shardings(tree, mesh, axes)


def abstract_params(network: Network, mesh: mesh_lib.AnyMesh) -> PyTree:
  """Shapes of the network's parameters with their shardings."""
  tree = sharding.unbox(transformer.abstract_params(network))
  return with_shardings(tree, shardings(network, tree, mesh))


def with_shardings(tree: PyTree, places: PyTree) -> PyTree:
  """A tree of shapes, each with its sharding."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places,
  )


def init_params(network: Network, key: Array, mesh: Mesh) -> PyTree:
  """New parameters, made where they will lie."""
  tree = sharding.unbox(transformer.abstract_params(network))
  init = jax.jit(
    lambda k: transformer.init_params(network, k),
    out_shardings=shardings(network, tree, mesh),
    compiler_options=compiler_options.init_compiler_options(mesh),
  )
  return init(key)


def load_params(
  stage: Stage, mesh: Mesh, shared: dict[str, PyTree] | None = None
) -> PyTree:
  """A stage's parameters.

  Args:
    stage: the stage.
    mesh: where they will lie.
    shared: what is loaded already, by the stage's folder; what adapters stand
      on is loaded once and added here.
  """
  place = abstract_params(stage.network, mesh)
  if stage.base is None:
    shared = {} if shared is None else shared
    folder = os.path.realpath(stage.path)
    if folder not in shared:
      shared[folder] = stage.params(place)
    return shared[folder]
  return stage.params(place, load_params(stage.base, mesh, shared))


class InitialParams(NamedTuple):
  """Parameters that a training starts from."""

  frozen: PyTree  # empty without adapters
  trained: PyTree
  adapts: LoraBase | None  # whose the frozen ones are

  @property
  def whole(self) -> PyTree:
    """All of them."""
    return lora.merge_trees(self.frozen, self.trained)


def init_params_from(
  network: Network,
  stage: Stage | None,
  key: Array,
  mesh: Mesh,
  shared: dict[str, PyTree] | None = None,
) -> InitialParams:
  """A network's parameters: a stage's, and new ones where it has none.

  A scalar model takes a language model's decoder under a new head. A network
  with adapters goes on with the stage's; without, they are merged.

  Args:
    network: what is trained.
    stage: where it starts from; None makes all parameters anew.
    key: for the new ones.
    mesh: where they will lie.
    shared: see `load`.

  Raises:
    UserError: adapters are wanted, but there is nothing to adapt, or others.
  """
  c = network.config
  if stage is None:
    if c.lora_rank:
      raise UserError(
        f"is {c.lora_rank}, but there is no model to adapt",
        field="model.lora_rank",
        fix="give --init_from=DIR, or --model.lora_rank=0",
      )
    if c.head_padding:
      raise UserError(
        f"is {c.head_padding}, but new heads are not zero",
        field="model.head_padding",
        fix="give --model.num_heads that --mesh.tensor divides",
      )
    return InitialParams({}, init_params(network, key, mesh), None)
  found, adapts = load_params(stage, mesh, shared), None
  if not c.lora_rank:
    found = lora.merge_lora(stage.model_config, found)
  elif stage.base is None:
    size = stage.model_config.vocab_size
    adapts = LoraBase(stage.path, base_checksum(hub.flattened(found), size))
  elif lora.lora_summary(c) == lora.lora_summary(stage.model_config):
    adapts = LoraBase(stage.base.path, stage.checksum, stage.blocks_only)
  else:
    held = stage.model_config
    raise UserError(
      f"has other adapters ({lora.lora_summary(held)}) than"
      f" {lora.lora_summary(c)}",
      file=stage.path,
      fix="give the same ones, or export it (they are merged) and start"
      " from that",
    )

  def missing(k: Array) -> PyTree:
    return lora.tree_difference(transformer.init_params(network, k), found)

  wanted = jax.eval_shape(missing, key)
  if wanted:
    draw = jax.jit(
      missing,
      out_shardings=shardings(network, wanted, mesh),
      compiler_options=compiler_options.init_compiler_options(mesh),
    )
    found = lora.merge_trees(found, draw(key))
  found = lora.tree_select(abstract_params(network, mesh), found)
  return InitialParams(*lora.split(c, found), adapts)


def train_state(
  network: Network,
  params: PyTree,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> state_lib.TrainState:
  """A state before its first update; takes the parameters over."""

  def make(params):
    return state_lib.new_state(params, optimizer)

  places = shardings(network, jax.eval_shape(make, params), mesh)
  return jax.jit(make, out_shardings=places, donate_argnums=0)(params)
