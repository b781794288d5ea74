"""What a program costs, by arithmetic: no compiler is asked.

Operations are counted in what JAX traces. What else there is follows from the
shapes of a pass of a network over some rows: P parameters in L layers of width
D and H heads, over a mesh of (d, f, t) chips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from instructgpt_jax import configs
from instructgpt_jax.losses import chunked
from instructgpt_jax.models import attention
from instructgpt_jax.models.kernels import splash
from instructgpt_jax.planner import undivided
from instructgpt_jax.planner.cost import Cost
from instructgpt_jax.planner.hardware import Chip
from instructgpt_jax.planner.work import Pass, Program

_MASTER = 4  # bytes of a parameter, a gradient, a moment


@dataclasses.dataclass(frozen=True)
class _Layout:
  """A mesh, and how much of a network's work one chip of it does."""

  data: int
  fsdp: int
  tensor: int
  platform: str = ""

  def rows(self, rows: int) -> float:
    """Of a batch, on one chip."""
    return max(1, -(-rows // (self.data * self.fsdp)))


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Numbers of a network's arrays that one chip computes with."""

  block: float  # parameters of a layer, over tensor
  embedding: float  # parameters of the embedding, over tensor
  width: float
  wide: float  # numbers a token of a layer's four products
  inner: float  # numbers a token of the queries
  kv: float  # numbers a token of keys and values
  up: float  # numbers a token of the MLP's first product
  heads: float
  layers: int
  item: int  # bytes of an activation
  shards: int  # of fsdp, over which weights are split


def _sizes(model: configs.Model, layout: _Layout) -> _Sizes:
  """Computes sizes on a chip; parts that the mesh does not divide are whole."""
  t = layout.tensor
  heads = undivided.part(model.padded_heads, t)
  inner = heads * model.head_size
  kv = 2 * undivided.part(model.padded_kv_heads, t) * model.head_size
  hidden = undivided.part(model.mlp_dim, t)
  up = hidden * (2 if model.gated_mlp else 1)
  block = model.d_model * (2 * inner + kv + up + hidden)
  return _Sizes(
    block=block,
    embedding=undivided.part(model.padded_vocab_size, t) * model.d_model,
    width=model.d_model,
    wide=inner + kv + up + 2 * model.d_model,
    inner=inner,
    kv=kv,
    up=up,
    heads=heads,
    layers=model.num_layers,
    item=2 if model.dtype == "bfloat16" else 4,
    shards=1 if model.d_model % layout.fsdp else layout.fsdp,
  )


def estimate(
  program: Program, chip: Chip, mesh: Mapping[str, int], flops: float
) -> Cost:
  """The cost of a program on one chip.

  Args:
    program: the program.
    chip: one of those that run it.
    mesh: size of each axis of the mesh.
    flops: of all chips.
  """
  layout = _Layout(**mesh, platform=chip.platform)
  memory = sum(p.times * _memory(p, layout) for p in program.passes)
  network: dict[str, float] = dict.fromkeys(mesh, 0.0)
  for one in program.passes:
    for axis, sent in _network(one, layout).items():
      network[axis] += one.times * sent
  compute = flops / math.prod(mesh.values())
  return Cost(
    flops=compute,
    memory=memory,
    # Passes that are bound by memory, such as decoding, hide nothing else.
    busy=max(compute / chip.flops, memory / chip.bandwidth),
    network=network,
    temporary=_temporary(program, layout),
  )


def kept(
  programs: Sequence[Program], mesh: Mapping[str, int], platform: str
) -> dict[str, float]:
  """Returns the bytes that passes keep: saved activations, and KV caches."""
  layout = _Layout(**mesh, platform=platform)
  sizes = {"activations": 0.0, "caches": 0.0}
  for one in (one for program in programs for one in program.passes):
    if one.kind == "train":
      tokens = layout.rows(one.rows) * one.length
      size = one.model.num_layers * tokens * _saved(one, layout)
      sizes["activations"] = max(sizes["activations"], size)
    elif one.kind == "decode":
      sizes["caches"] = max(sizes["caches"], _cache(one, layout))
  return {name: size for name, size in sizes.items() if size}


# How often a block of attention's scores is held, and all of them are read or
# written, in a pass; measured on programs compiled for TPUs (docs/planning.md).
_SCORES_HELD = {"forward": 2.0, "none": 4.5, "dots": 10.0, "full": 10.0}
_SCORES_MOVED = {"forward": 4.0, "none": 11.0, "dots": 15.0, "full": 15.0}
# The same of a token's queries, where a kernel attends.
_QUERIES_HELD = {"forward": 6.0, "none": 18.0, "dots": 18.0, "full": 18.0}
_QUERIES_MOVED = {"forward": 30.0, "none": 85.0, "dots": 150.0, "full": 150.0}
_RESIDUALS_MOVED = {"forward": 40.0, "none": 80.0, "dots": 110.0, "full": 110.0}
# Sums over `tensor` of a layer: two a way, and one that is computed again. The
# compiler makes as many where it leaves the heads whole.
_SUMS = {"forward": 2, "none": 4, "dots": 4, "full": 5}
# Gathers of a layer's weights: one a way; what is computed anew needs them all
# again, and the gradient those of queries, keys and values once more.
_GATHERS = {"forward": 1.0, "none": 2.0, "dots": 2.0, "full": 2.25}
_LANES = 128  # a TPU fills the last axis of an array up to so many


def _kind(one: Pass) -> str:
  return one.model.remat if one.kind == "train" else one.kind


def _attention(one: Pass, layout: _Layout) -> tuple[float, float]:
  """Bytes that a layer's attention holds at most, and that it moves.

  Those of its scores, unless they never leave a TPU's core.
  """
  sizes, kind = _sizes(one.model, layout), _kind(one)
  rows = layout.rows(one.rows) * sizes.heads
  if layout.platform == "tpu" and one.length >= splash.LEAST:
    lanes = -(-one.model.head_size // _LANES) * _LANES
    queries = sizes.item * rows * splash.padded(one.length) * lanes
    return _QUERIES_HELD[kind] * queries, _QUERIES_MOVED[kind] * queries
  blocks = attention.block_pairs(one.length, one.reach)
  held, moved = _SCORES_HELD[kind], _SCORES_MOVED[kind]
  return (
    held * rows * _MASTER * max(blocks),
    moved * rows * _MASTER * sum(blocks),
  )


def _memory(one: Pass, layout: _Layout) -> float:
  sizes, rows = _sizes(one.model, layout), layout.rows(one.rows)
  if one.kind == "decode":
    weights = sizes.layers * sizes.block + sizes.embedding
    return sizes.item * weights / sizes.shards + _cache(one, layout)
  kind, tokens = _kind(one), rows * one.length
  _, layer = _attention(one, layout)
  layer += _RESIDUALS_MOVED[kind] * sizes.item * tokens * sizes.width
  layer += 2 * _GATHERS[kind] * sizes.item * sizes.block
  return sizes.layers * layer


def _cache(one: Pass, layout: _Layout) -> float:
  """Bytes of keys and values."""
  sizes = _sizes(one.model, layout)
  tokens = layout.rows(one.rows) * one.length
  return sizes.layers * tokens * sizes.kv * sizes.item


def _network(one: Pass, layout: _Layout) -> dict[str, float]:
  sizes = _sizes(one.model, layout)
  d, f, t = layout.data, layout.fsdp, layout.tensor
  if one.kind == "decode":
    return _of_token(one, layout)
  kind, rows = _kind(one), layout.rows(one.rows)
  blocks = sizes.layers * sizes.block
  share = (sizes.shards - 1) / sizes.shards
  fsdp = _GATHERS[kind] * share * sizes.item * blocks
  fsdp += share * sizes.item * sizes.embedding
  data = 0.0
  if one.trained:
    part = one.trained / _parameters(one)
    fsdp += part * share * _MASTER * blocks
    data += part * 2 * (d - 1) / d * _MASTER * blocks / sizes.shards
    whole = part * 2 * (d * f - 1) / (d * f) * _MASTER * sizes.embedding
    fsdp += whole if f > 1 else 0.0
    data += whole if f == 1 else 0.0
  sums = 2 * (t - 1) / t * _SUMS[kind] * sizes.layers
  tensor = sums * rows * one.length * sizes.width * sizes.item
  return {"data": data, "fsdp": fsdp, "tensor": tensor}


def _parameters(one: Pass) -> float:
  """Parameters of a pass's network, norms and biases left out."""
  sizes = _sizes(one.model, _Layout(1, 1, 1))
  return sizes.layers * sizes.block + sizes.embedding


def _of_token(one: Pass, layout: _Layout) -> dict[str, float]:
  """While decoding, weights stay and what they make of a token is summed."""
  sizes = _sizes(one.model, layout)
  d, f, t = layout.data, layout.fsdp, layout.tensor
  columns = -(-one.rows // d)
  wide = sizes.wide - 2 * sizes.width
  fsdp = (sizes.shards - 1) / sizes.shards * wide * 2
  tensor = 2 * (t - 1) / t * 2 * sizes.width / sizes.shards
  each = sizes.layers * columns * sizes.item
  vocabulary_part = sizes.embedding / sizes.width
  logits = (f - 1) / f * _MASTER * layout.rows(one.rows) * vocabulary_part
  return {"fsdp": each * fsdp + logits, "tensor": each * tensor}


def _temporary(program: Program, layout: _Layout) -> float:
  """The largest pass's; a decoder's cache stays while it reads prompts."""
  return max(_held(one, layout) for one in program.passes)


def _held(one: Pass, layout: _Layout) -> float:
  sizes, rows = _sizes(one.model, layout), layout.rows(one.rows)
  tokens = rows * one.length
  parameters = (sizes.layers * sizes.block + sizes.embedding) / sizes.shards
  if one.kind == "decode":
    return sizes.item * parameters + 2 * _cache(one, layout)
  scores, _ = _attention(one, layout)
  # Attention, MLP and the head are not at work at the same time.
  chunk = chunked.chunk_size(
    max(1, round(rows * one.logits)), one.model.padded_vocab_size
  )
  held = max(
    scores,
    2 * sizes.item * tokens * sizes.wide,
    3 * _MASTER * chunk * sizes.embedding / sizes.width,
  )
  held += sizes.item * (parameters + 2 * sizes.block)
  if one.kind != "train":
    return held
  held += sizes.layers * tokens * _saved(one, layout)
  part = one.trained / _parameters(one)
  held += part * _MASTER * (sizes.block + 2 * sizes.embedding)
  return held + part * _MASTER * parameters * (4 if one.times > 1 else 1)


def _saved(one: Pass, layout: _Layout) -> float:
  """Bytes a token that a layer keeps for its gradient."""
  c, sizes = one.model, _sizes(one.model, layout)
  if c.remat == "full":
    return sizes.item * sizes.width
  if c.remat == "dots":
    return sizes.item * (sizes.width + sizes.wide)
  padded = 1.0
  if layout.platform == "tpu":
    padded = -(-c.head_size // _LANES) * _LANES / c.head_size
  heads = padded * (2 * sizes.inner + sizes.kv)
  return sizes.item * (2 * sizes.width + heads + sizes.up)
