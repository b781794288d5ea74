"""Parameters and train states, placed on the mesh."""

from __future__ import annotations

import jax
import optax
from jax.sharding import Mesh

from instructgpt_jax.loops.workdir import Stage
from instructgpt_jax.models import transformer
from instructgpt_jax.runtime import mesh as mesh_lib
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.types import Array, PyTree

Network = transformer.LanguageModel | transformer.ScalarModel


def shardings(network: Network, tree: PyTree, mesh: Mesh) -> PyTree:
  """Where each array of a tree of (or around) the network's parameters lies."""
  axes = mesh_lib.logical_axes(transformer.abstract_params(network))
  return mesh_lib.state_shardings(tree, mesh, axes)


def abstract(network: Network, mesh: Mesh) -> PyTree:
  """Shapes of the network's parameters with their shardings."""
  tree = mesh_lib.unbox(transformer.abstract_params(network))
  return with_shardings(tree, shardings(network, tree, mesh))


def with_shardings(tree: PyTree, places: PyTree) -> PyTree:
  """A tree of shapes, each with its sharding."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places,
  )


def fresh(network: Network, key: Array, mesh: Mesh) -> PyTree:
  """New parameters, made where they will lie."""
  tree = mesh_lib.unbox(transformer.abstract_params(network))
  init = jax.jit(
    lambda k: transformer.init_params(network, k),
    out_shardings=shardings(network, tree, mesh),
  )
  return init(key)


def load(stage: Stage, mesh: Mesh) -> PyTree:
  """A stage's parameters."""
  return stage.params(abstract(stage.network, mesh))


def scalar_from_stage(
  network: transformer.ScalarModel, stage: Stage, key: Array, mesh: Mesh
) -> PyTree:
  """A scalar model's parameters: a stage's, or its decoder under a new head."""
  found = load(stage, mesh)
  if "head" in found:
    return found

  def head(k: Array) -> PyTree:
    return {"head": transformer.init_params(network, k)["head"]}

  places = shardings(network, jax.eval_shape(head, key), mesh)
  new = jax.jit(head, out_shardings=places)(key)
  return transformer.scalar_from_language(found, new)


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
