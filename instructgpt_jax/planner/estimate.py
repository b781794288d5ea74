"""Estimates the cost of a program without compiling it.

FLOPs are counted in the jaxpr. Memory and communication follow from the
shapes of each pass and from the sizes d, f, t of the mesh axes data, fsdp and
tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from instructgpt_jax import configs
from instructgpt_jax.losses import chunked
from instructgpt_jax.models.kernels import blocked, splash
from instructgpt_jax.planner import undivided
from instructgpt_jax.planner.cost import Cost
from instructgpt_jax.planner.hardware import Chip
from instructgpt_jax.planner.workload import Pass, Program

_FLOAT32_BYTES = 4  # parameters, gradients and moments are float32


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Sizes of the mesh's axes."""

  data: int
  fsdp: int
  tensor: int
  platform: str = ""

  def rows(self, rows: int) -> float:
    """Returns the rows per chip of a batch."""
    return max(1, -(-rows // (self.data * self.fsdp)))


@dataclasses.dataclass(frozen=True)
class _LocalSizes:
  """Sizes of a network's arrays on one chip.

  Attributes:
    block: parameters of a layer, sharded over `tensor`.
    embedding: parameters of the embedding, sharded over `tensor`.
    d_model: width of the residual stream.
    layer_outputs: elements per token of the outputs of a layer's four matmuls.
    queries: elements per token of the queries.
    keys_values: elements per token of keys and values.
    mlp_inner: elements per token of the output of the MLP's first matmul.
    heads: attention heads.
    layers: layers.
    itemsize: bytes of an activation.
    weight_shards: shards of the weights over `fsdp`.
  """

  block: float
  embedding: float
  d_model: float
  layer_outputs: float
  queries: float
  keys_values: float
  mlp_inner: float
  heads: float
  layers: int
  itemsize: int
  weight_shards: int


def _local_sizes(model: configs.Model, layout: _Layout) -> _LocalSizes:
  """Computes sizes on a chip; axes that the mesh does not divide are whole."""
  t = layout.tensor
  heads = undivided.shard_size(model.padded_heads, t)
  inner = heads * model.head_size
  kv = 2 * undivided.shard_size(model.padded_kv_heads, t) * model.head_size
  hidden = undivided.shard_size(model.mlp_dim, t)
  up = hidden * (2 if model.gated_mlp else 1)
  block = model.d_model * (2 * inner + kv + up + hidden)
  return _LocalSizes(
    block=block,
    embedding=undivided.shard_size(model.padded_vocab_size, t) * model.d_model,
    d_model=model.d_model,
    layer_outputs=inner + kv + up + 2 * model.d_model,
    queries=inner,
    keys_values=kv,
    mlp_inner=up,
    heads=heads,
    layers=model.num_layers,
    itemsize=2 if model.dtype == "bfloat16" else 4,
    weight_shards=1 if model.d_model % layout.fsdp else layout.fsdp,
  )


def estimate_cost(
  program: Program, chip: Chip, mesh: Mapping[str, int], flops: float
) -> Cost:
  """Estimates the cost of a program on one chip.

  Args:
    program: the program.
    chip: kind of the chips that run it.
    mesh: name → size of each axis of the mesh.
    flops: FLOPs on all chips together.
  """
  layout = _Layout(**mesh, platform=chip.platform)
  memory = sum(
    network_pass.count * _hbm_bytes(network_pass, layout)
    for network_pass in program.passes
  )
  network: dict[str, float] = dict.fromkeys(mesh, 0.0)
  for network_pass in program.passes:
    for axis, sent in _sent_bytes(network_pass, layout).items():
      network[axis] += network_pass.count * sent
  compute = flops / math.prod(mesh.values())
  return Cost(
    flops=compute,
    hbm_bytes=memory,
    # A pass bound by memory, such as decoding, overlaps with nothing else.
    seconds=max(compute / chip.flops, memory / chip.bandwidth),
    sent=network,
    temporary_bytes=_program_temporary_bytes(program, layout),
  )


def saved_bytes(
  programs: Sequence[Program], mesh: Mapping[str, int], platform: str
) -> dict[str, float]:
  """Returns the bytes per chip of saved activations and of KV caches."""
  layout = _Layout(**mesh, platform=platform)
  sizes = {"activations": 0.0, "caches": 0.0}
  for network_pass in (
    network_pass for program in programs for network_pass in program.passes
  ):
    if network_pass.kind == "train":
      tokens = layout.rows(network_pass.rows) * network_pass.length
      size = (
        network_pass.model.num_layers
        * tokens
        * _saved_bytes_per_token(network_pass, layout)
      )
      sizes["activations"] = max(sizes["activations"], size)
    elif network_pass.kind == "decode":
      sizes["caches"] = max(
        sizes["caches"], _kv_cache_bytes(network_pass, layout)
      )
  return {name: size for name, size in sizes.items() if size}


# Live copies of a block of attention scores, and times that all scores are read
# or written; measured on compiled programs (docs/planning.md).
_SCORE_BUFFERS = {"forward": 2.0, "none": 4.5, "dots": 10.0, "full": 10.0}
_SCORE_TRANSFERS = {"forward": 4.0, "none": 11.0, "dots": 15.0, "full": 15.0}
# The same for queries, where a kernel computes attention.
_QUERY_BUFFERS = {"forward": 6.0, "none": 18.0, "dots": 18.0, "full": 18.0}
_QUERY_TRANSFERS = {"forward": 30.0, "none": 85.0, "dots": 150.0, "full": 150.0}
_RESIDUAL_TRANSFERS = {
  "forward": 40.0,
  "none": 80.0,
  "dots": 110.0,
  "full": 110.0,
}
# All-reduces over `tensor` per layer: two in each direction, one for recomputed
# activations. The compiler emits the same number where heads are not sharded.
_ALL_REDUCES = {"forward": 2, "none": 4, "dots": 4, "full": 5}
# All-gathers of a layer's weights: one in each direction. Recomputing needs all
# of them again, and the gradient those of queries, keys and values once more.
_ALL_GATHERS = {"forward": 1.0, "none": 2.0, "dots": 2.0, "full": 2.25}
_LANES = 128  # a TPU pads the last axis of an array to a multiple of this


def _remat_mode(network_pass: Pass) -> str:
  return (
    network_pass.model.remat
    if network_pass.kind == "train"
    else network_pass.kind
  )


def _attention_bytes(
  network_pass: Pass, layout: _Layout
) -> tuple[float, float]:
  """Computes (live bytes, transferred bytes) of a layer's attention.

  These are bytes of scores, or of queries where a kernel keeps the scores in a
  TPU's core.
  """
  sizes, kind = (
    _local_sizes(network_pass.model, layout),
    _remat_mode(network_pass),
  )
  rows = layout.rows(network_pass.rows) * sizes.heads
  if layout.platform == "tpu" and network_pass.length >= splash.MIN_LENGTH:
    lanes = -(-network_pass.model.head_size // _LANES) * _LANES
    queries = (
      sizes.itemsize * rows * splash.padded_length(network_pass.length) * lanes
    )
    return _QUERY_BUFFERS[kind] * queries, _QUERY_TRANSFERS[kind] * queries
  blocks = blocked.block_pairs(network_pass.length, network_pass.span)
  buffers, transfers = _SCORE_BUFFERS[kind], _SCORE_TRANSFERS[kind]
  return (
    buffers * rows * _FLOAT32_BYTES * max(blocks),
    transfers * rows * _FLOAT32_BYTES * sum(blocks),
  )


def _hbm_bytes(network_pass: Pass, layout: _Layout) -> float:
  """Computes the bytes of main memory that a pass reads and writes."""
  sizes, rows = (
    _local_sizes(network_pass.model, layout),
    layout.rows(network_pass.rows),
  )
  if network_pass.kind == "decode":
    weights = sizes.layers * sizes.block + sizes.embedding
    return sizes.itemsize * weights / sizes.weight_shards + _kv_cache_bytes(
      network_pass, layout
    )
  kind, tokens = _remat_mode(network_pass), rows * network_pass.length
  _, layer = _attention_bytes(network_pass, layout)
  layer += _RESIDUAL_TRANSFERS[kind] * sizes.itemsize * tokens * sizes.d_model
  layer += 2 * _ALL_GATHERS[kind] * sizes.itemsize * sizes.block
  return sizes.layers * layer


def _kv_cache_bytes(network_pass: Pass, layout: _Layout) -> float:
  """Computes the bytes of a KV cache."""
  sizes = _local_sizes(network_pass.model, layout)
  tokens = layout.rows(network_pass.rows) * network_pass.length
  return sizes.layers * tokens * sizes.keys_values * sizes.itemsize


def _sent_bytes(network_pass: Pass, layout: _Layout) -> dict[str, float]:
  """Computes the bytes that a pass sends along each axis."""
  sizes = _local_sizes(network_pass.model, layout)
  d, f, t = layout.data, layout.fsdp, layout.tensor
  if network_pass.kind == "decode":
    return _decode_sent_bytes(network_pass, layout)
  kind, rows = _remat_mode(network_pass), layout.rows(network_pass.rows)
  blocks = sizes.layers * sizes.block
  share = (sizes.weight_shards - 1) / sizes.weight_shards
  fsdp = _ALL_GATHERS[kind] * share * sizes.itemsize * blocks
  fsdp += share * sizes.itemsize * sizes.embedding
  data = 0.0
  if network_pass.trained_params:
    part = network_pass.trained_params / _num_params(network_pass)
    fsdp += part * share * _FLOAT32_BYTES * blocks
    data += (
      part * 2 * (d - 1) / d * _FLOAT32_BYTES * blocks / sizes.weight_shards
    )
    embedding = (
      part * 2 * (d * f - 1) / (d * f) * _FLOAT32_BYTES * sizes.embedding
    )
    fsdp += embedding if f > 1 else 0.0
    data += embedding if f == 1 else 0.0
  all_reduces = 2 * (t - 1) / t * _ALL_REDUCES[kind] * sizes.layers
  tensor = (
    all_reduces * rows * network_pass.length * sizes.d_model * sizes.itemsize
  )
  return {"data": data, "fsdp": fsdp, "tensor": tensor}


def _num_params(network_pass: Pass) -> float:
  """Counts the parameters of a pass's network without norms and biases."""
  sizes = _local_sizes(network_pass.model, _Layout(1, 1, 1))
  return sizes.layers * sizes.block + sizes.embedding


def _decode_sent_bytes(network_pass: Pass, layout: _Layout) -> dict[str, float]:
  """Computes the bytes that a decode step sends.

  Weights stay where they are, and outputs of each token are all-reduced.
  """
  sizes = _local_sizes(network_pass.model, layout)
  d, f, t = layout.data, layout.fsdp, layout.tensor
  rows = -(-network_pass.rows // d)
  outputs = sizes.layer_outputs - 2 * sizes.d_model
  fsdp = (sizes.weight_shards - 1) / sizes.weight_shards * outputs * 2
  tensor = 2 * (t - 1) / t * 2 * sizes.d_model / sizes.weight_shards
  bytes_per_output = sizes.layers * rows * sizes.itemsize
  vocabulary_part = sizes.embedding / sizes.d_model
  logits = (
    (f - 1)
    / f
    * _FLOAT32_BYTES
    * layout.rows(network_pass.rows)
    * vocabulary_part
  )
  return {
    "fsdp": bytes_per_output * fsdp + logits,
    "tensor": bytes_per_output * tensor,
  }


def temporary_bytes(
  program: Program, mesh: Mapping[str, int], platform: str
) -> float:
  """Estimates the temporary memory of a program on one chip, in bytes."""
  return _program_temporary_bytes(program, _Layout(**mesh, platform=platform))


def _program_temporary_bytes(program: Program, layout: _Layout) -> float:
  """Returns the temporary memory of the largest pass."""
  return max(
    _pass_temporary_bytes(network_pass, layout)
    for network_pass in program.passes
  )


def _pass_temporary_bytes(network_pass: Pass, layout: _Layout) -> float:
  """Estimates the temporary memory of a pass."""
  sizes, rows = (
    _local_sizes(network_pass.model, layout),
    layout.rows(network_pass.rows),
  )
  tokens = rows * network_pass.length
  parameters = (
    sizes.layers * sizes.block + sizes.embedding
  ) / sizes.weight_shards
  if network_pass.kind == "decode":
    return sizes.itemsize * parameters + 2 * _kv_cache_bytes(
      network_pass, layout
    )
  scores, _ = _attention_bytes(network_pass, layout)
  # Attention, MLP and head do not run at the same time.
  chunk = chunked.chunk_size(
    max(1, round(rows * network_pass.logits)),
    network_pass.model.padded_vocab_size,
  )
  total = max(
    scores,
    2 * sizes.itemsize * tokens * sizes.layer_outputs,
    3 * _FLOAT32_BYTES * chunk * sizes.embedding / sizes.d_model,
  )
  total += sizes.itemsize * (parameters + 2 * sizes.block)
  if network_pass.kind != "train":
    return total
  total += sizes.layers * tokens * _saved_bytes_per_token(network_pass, layout)
  part = network_pass.trained_params / _num_params(network_pass)
  total += part * _FLOAT32_BYTES * (sizes.block + 2 * sizes.embedding)
  return total + part * _FLOAT32_BYTES * parameters * (
    4 if network_pass.count > 1 else 1
  )


def _saved_bytes_per_token(network_pass: Pass, layout: _Layout) -> float:
  """Returns the bytes per token that a layer saves for its gradient."""
  model, sizes = network_pass.model, _local_sizes(network_pass.model, layout)
  if model.remat == "full":
    return sizes.itemsize * sizes.d_model
  if model.remat == "dots":
    return sizes.itemsize * (sizes.d_model + sizes.layer_outputs)
  padded = 1.0
  if layout.platform == "tpu":
    padded = -(-model.head_size // _LANES) * _LANES / model.head_size
  heads = padded * (2 * sizes.queries + sizes.keys_values)
  return sizes.itemsize * (2 * sizes.d_model + heads + sizes.mlp_inner)
