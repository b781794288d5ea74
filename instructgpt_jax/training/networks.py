"""Parameters and train states of networks, sharded over the mesh."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding
from instructgpt_jax.distributed import compiler_options
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub
from instructgpt_jax.models import heads, lora
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training.lora_base import LoraBase, base_checksum
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import Array, PyTree

Network = heads.LanguageModel | heads.ScalarModel


def shardings(network: Network, tree: PyTree, mesh: mesh_lib.AnyMesh) -> PyTree:
  """Returns the sharding of each array of a network's parameters or state."""
  axes = sharding.logical_axes(heads.abstract_params(network))
  return sharding.state_shardings(tree, mesh, axes)


def abstract_params(network: Network, mesh: mesh_lib.AnyMesh) -> PyTree:
  """Returns shapes and shardings of the network's parameters."""
  boxed = heads.abstract_params(network)
  return with_shardings(
    sharding.unbox(boxed), sharding.state_shardings(boxed, mesh)
  )


def with_shardings(tree: PyTree, tree_shardings: PyTree) -> PyTree:
  """Adds shardings to a tree of shapes."""
  return jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec),
    tree,
    tree_shardings,
  )


def init_params(network: Network, key: Array, mesh: Mesh) -> PyTree:
  """Initializes parameters, each shard on its device."""
  init = jax.jit(
    lambda k: heads.init_params(network, k),
    out_shardings=sharding.state_shardings(
      heads.abstract_params(network), mesh
    ),
    compiler_options=compiler_options.init_compiler_options(mesh),
  )
  return init(key)


def load_params(
  stage: Stage, mesh: Mesh, loaded: dict[str, PyTree] | None = None
) -> PyTree:
  """Loads a stage's parameters.

  Args:
    stage: the stage.
    mesh: mesh that they are sharded over.
    loaded: parameters that are loaded already, by the stage's real path. What
      is loaded here is added, except adapters.
  """
  abstract = abstract_params(stage.network, mesh)
  if stage.base is not None:
    return stage.params(abstract, load_params(stage.base, mesh, loaded))
  loaded = {} if loaded is None else loaded
  path = os.path.realpath(stage.path)
  if path not in loaded:
    loaded[path] = stage.params(abstract)
  return loaded[path]


class InitialParams(NamedTuple):
  """Parameters that a training starts from."""

  frozen: PyTree  # parameters below the adapters; {} without adapters
  trained: PyTree
  adapts: LoraBase | None  # the model that the frozen ones belong to

  @property
  def all_params(self) -> PyTree:
    """The frozen and the trained parameters."""
    return lora.merge_trees(self.frozen, self.trained)


def init_params_from(
  network: Network,
  stage: Stage | None,
  key: Array,
  mesh: Mesh,
  loaded: dict[str, PyTree] | None = None,
) -> InitialParams:
  """Loads a network's parameters from a stage; initializes what it lacks.

  A scalar model takes a language model's decoder and gets a new head. A network
  with adapters continues those of the stage; without, they are merged.

  Args:
    network: the network to train.
    stage: where it starts from; None initializes all parameters.
    key: random key of new parameters.
    mesh: mesh that they are sharded over.
    loaded: see `load_params`.

  Raises:
    UserError: the network has adapters, but the stage is missing or has other
      adapters.
  """
  config = network.config
  if stage is None:
    _check_starts_from_nothing(config)
    return InitialParams({}, init_params(network, key, mesh), None)
  params = load_params(stage, mesh, loaded)
  adapts = _adapted_model(config, stage, params)
  if not config.lora_rank:
    params = lora.merge_lora(stage.model_config, params)

  def missing(key: Array) -> PyTree:
    return lora.tree_difference(heads.init_params(network, key), params)

  abstract_missing = jax.eval_shape(missing, key)
  if abstract_missing:
    init_missing = jax.jit(
      missing,
      out_shardings=shardings(network, abstract_missing, mesh),
      compiler_options=compiler_options.init_compiler_options(mesh),
    )
    params = lora.merge_trees(params, init_missing(key))
  params = lora.tree_select(abstract_params(network, mesh), params)
  return InitialParams(*lora.split(config, params), adapts)


def _check_starts_from_nothing(config: configs.Model) -> None:
  """Refuses settings that need a model to start from."""
  if config.lora_rank:
    raise UserError(
      f"is {config.lora_rank}, but there is no model to adapt",
      field="model.lora_rank",
      fix="give --init_from=DIR, or --model.lora_rank=none",
      code="no_model_to_adapt",
    )
  if config.head_padding:
    raise UserError(
      f"is {config.head_padding}, but new heads are not zero",
      field="model.head_padding",
      fix="give --model.num_heads that --mesh.tensor divides",
      code="head_padding",
    )


def _adapted_model(
  config: configs.Model, stage: Stage, params: PyTree
) -> LoraBase | None:
  """Returns the model that a network's adapters belong to, if it has any.

  Args:
    config: the network.
    stage: where it starts from.
    params: the stage's parameters.
  """
  if not config.lora_rank:
    return None
  if stage.base is None:
    size = stage.model_config.vocab_size
    return LoraBase(stage.path, base_checksum(hub.flatten_leaves(params), size))
  if lora.lora_summary(config) == lora.lora_summary(stage.model_config):
    return LoraBase(stage.base.path, stage.checksum, stage.blocks_only)
  raise UserError(
    f"has other adapters ({lora.lora_summary(stage.model_config)}) than"
    f" {lora.lora_summary(config)}",
    file=stage.path,
    fix="give the same ones, or export it (they are merged) and start"
    " from that",
    code="other_adapters",
  )


def train_state(
  network: Network,
  params: PyTree,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> state_lib.TrainState:
  """Makes the state before the first update; donates the parameters."""

  def make(params):
    return state_lib.new_state(params, optimizer)

  out_shardings = shardings(network, jax.eval_shape(make, params), mesh)
  return jax.jit(make, out_shardings=out_shardings, donate_argnums=0)(params)
