"""Counts FLOPs, memory traffic and communication in compiled HLO.

XLA's cost analysis counts the body of a loop once, so this module reads the HLO
text. For a fusion, it counts inputs and outputs. Where a fusion reads or
updates only a slice of an array, it counts the slice.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from instructgpt_jax.models.kernels import splash
from instructgpt_jax.planner import hlo_text
from instructgpt_jax.planner.hlo_text import Instruction

_NO_COST = {
  "after-all",
  "bitcast",
  "call",
  "conditional",
  "constant",
  "copy-done",
  "get-tuple-element",
  "parameter",
  "partition-id",
  "replica-id",
  "tuple",
  "while",
}
_COLLECTIVES = {
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
}


class Op(NamedTuple):
  """A fusion, or an instruction outside of any fusion.

  Attributes:
    name: name of the instruction.
    count: runs of it per run of the program.
    flops: FLOPs of its matmuls, per run.
    hbm_bytes: bytes of main memory read and written, per run.
  """

  name: str
  count: float
  flops: float
  hbm_bytes: float


@dataclasses.dataclass
class HloCost:
  """Cost of a program on one chip.

  Attributes:
    ops: its operations.
    sent: mesh axes joined by "+" → bytes sent.
  """

  ops: list[Op] = dataclasses.field(default_factory=list)
  sent: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )

  @property
  def flops(self) -> float:
    """Returns the FLOPs of all matmuls."""
    return sum(op.count * op.flops for op in self.ops)

  @property
  def hbm_bytes(self) -> float:
    """Returns the bytes of main memory read and written."""
    return sum(op.count * op.hbm_bytes for op in self.ops)

  def seconds(self, flops: float, bandwidth: float) -> float:
    """Sums the time of operations, each bound by FLOPs or by memory."""
    return sum(
      op.count * max(op.flops / flops, op.hbm_bytes / bandwidth)
      for op in self.ops
    )


class HloModule:
  """Computations of a compiled module."""

  def __init__(self, text: str, mesh: Mapping[str, int], trips: int):
    """Parses a module.

    Args:
      text: HLO text of the compiled module.
      mesh: name → size of the mesh's axes, outermost first.
      trips: trips of a loop whose end depends on data.
    """
    self._mesh, self._trips = dict(mesh), trips
    self._computations, self._entry = hlo_text.parse_module(text)

  def cost(self) -> HloCost:
    """Computes the cost of one run of the program on one chip."""
    cost = HloCost()
    self._walk(self._entry, 1, cost)
    return cost

  def _walk(self, name: str, times: float, cost: HloCost) -> None:
    lines = self._computations[name]
    for line in lines.values():
      opcode = line.opcode.removesuffix("-start")
      if opcode == "while":
        trips = self._trip_count(line)
        for part in hlo_text.called_computations(line, "body"):
          self._walk(part, times * trips, cost)
      elif opcode in ("call", "async"):
        for part in hlo_text.called_computations(line, "to_apply", "calls"):
          self._walk(part, times, cost)
      elif opcode == "conditional":
        parts = hlo_text.called_computations(
          line, "branch_computations", "true_computation"
        )
        for part in itertools.islice(parts, 1):
          self._walk(part, times, cost)
      elif line.opcode == "fusion":
        inner = next(hlo_text.called_computations(line, "calls"))
        flops = self._fusion_flops(inner, times, cost)
        memory = self._fusion_bytes(lines, line, inner)
        cost.ops.append(Op(line.name, times, flops, memory))
      elif opcode in _COLLECTIVES:
        self._add_collective(line, name, times, cost)
      elif opcode not in _NO_COST and not line.opcode.endswith("-done"):
        flops = _matmul_flops(lines, line)
        memory = self._op_bytes(lines, line)
        cost.ops.append(Op(line.name, times, flops, memory))

  def _fusion_flops(self, name: str, times: float, cost: HloCost) -> float:
    """Returns a fusion's FLOPs, and adds its collectives to the cost."""
    lines = self._computations[name]
    total = 0.0
    for line in lines.values():
      if line.opcode.removesuffix("-start") in _COLLECTIVES:
        self._add_collective(line, name, times, cost)
      elif line.opcode == "fusion":
        total += self._fusion_flops(
          next(hlo_text.called_computations(line, "calls")), times, cost
        )
      else:
        total += _matmul_flops(lines, line)
    return total

  def _add_collective(
    self, line: Instruction, name: str, times: float, cost: HloCost
  ) -> None:
    axis, size = self._collective_bytes(line)
    # XLA fuses an all-reduce and a slice into a reduce-scatter.
    is_scatter = line.opcode == "all-reduce" and "all-reduce-scatter" in name
    cost.sent[axis] += times * size * (0.5 if is_scatter else 1)

  def _trip_count(self, line: Instruction) -> int:
    """Returns the trips of a loop, from its condition if that is constant."""
    known = re.search(r'known_trip_count[^\d]*"?(\d+)', line.attributes)
    if known:
      return int(known[1])
    condition = self._computations[
      next(hlo_text.called_computations(line, "condition"))
    ]
    bound = self._compare_limit(condition)
    if bound is not None:
      return bound
    body = self._computations[next(hlo_text.called_computations(line, "body"))]
    numbers = {
      line.name: int(line.attributes)
      for line in (*condition.values(), *body.values())
      if line.opcode == "constant" and line.attributes.isdigit()
    }
    root = hlo_text.root_instruction(condition)
    limit = next((numbers[n] for n in root.operands if n in numbers), None)
    if root.opcode == "and":  # no constant bound
      return self._trips
    counter = condition.get(root.operands[0])
    if root.opcode != "compare":  # the comparison is in a fusion
      constants = (numbers[n] for n in condition if n in numbers)
      limit = max(constants, default=None)
    if limit is None:
      return self._trips
    index = re.search(r"index=(\d+)", counter.attributes) if counter else None
    if index is None:
      return limit
    update = body.get(hlo_text.root_instruction(body).operands[int(index[1])])
    while update is not None and update.opcode in ("copy", "bitcast"):
      update = body.get(update.operands[0])
    steps = (
      [numbers[n] for n in update.operands if n in numbers] if update else []
    )
    return -(-limit // max(steps, default=1))

  def _compare_limit(self, condition: Mapping[str, Instruction]) -> int | None:
    """Returns the constant that the counter of an `and` must stay below."""
    root = hlo_text.root_instruction(condition)
    if root.opcode == "fusion":
      return self._compare_limit(
        self._computations[next(hlo_text.called_computations(root, "calls"))]
      )
    if root.opcode != "and":
      return None
    for part in (condition[name] for name in root.operands):
      if part.opcode == "compare" and "direction=LT" in part.attributes:
        limit = condition[part.operands[1]]
        if limit.opcode == "constant":
          return int(limit.attributes)
    return None

  def _op_bytes(
    self, lines: Mapping[str, Instruction], line: Instruction
  ) -> float:
    if line.opcode == "dynamic-slice":
      return 2 * hlo_text.hbm_bytes(line.type)
    if line.opcode == "dynamic-update-slice":
      return 2 * hlo_text.hbm_bytes(lines[line.operands[1]].type)
    if line.opcode == "copy-start":  # (destination, source, context)
      return sum(
        map(hlo_text.hbm_bytes, hlo_text.tuple_elements(line.type)[:2])
      )
    read = sum(
      hlo_text.hbm_bytes(lines[n].type) for n in line.operands if n in lines
    )
    return read + hlo_text.hbm_bytes(line.type)

  def _fusion_bytes(
    self, lines: Mapping[str, Instruction], line: Instruction, inner: str
  ) -> float:
    body = self._computations[inner]
    total = 0.0
    for parameter in body.values():
      if parameter.opcode == "parameter":
        operand = lines.get(line.operands[int(parameter.attributes)])
        size = hlo_text.hbm_bytes(operand.type if operand else parameter.type)
        total += self._bytes_read(inner, parameter.name, size)
    root = hlo_text.root_instruction(body)
    outer = hlo_text.tuple_elements(line.type)
    roots = (
      [body[n] for n in root.operands] if root.opcode == "tuple" else [root]
    )
    for result, written in zip(roots, outer, strict=False):
      while result.opcode in ("bitcast", "copy", "convert") and result.operands:
        result = body[result.operands[0]]
      if result.opcode == "dynamic-update-slice":
        total += min(
          hlo_text.hbm_bytes(written),
          hlo_text.type_bytes(body[result.operands[1]].type),
        )
      else:
        total += hlo_text.hbm_bytes(written)
    return total

  def _bytes_read(self, computation: str, name: str, size: float) -> float:
    """Returns the bytes that a fusion reads of an array of this size."""
    body = self._computations[computation]
    total = 0.0
    for user in body.values():
      if name not in user.operands:
        continue
      if user.opcode == "bitcast":
        total += self._bytes_read(computation, user.name, size)
      elif user.opcode == "fusion":
        inner = next(hlo_text.called_computations(user, "calls"))
        index = str(user.operands.index(name))
        inside = next(
          x.name
          for x in self._computations[inner].values()
          if x.opcode == "parameter" and x.attributes == index
        )
        total += self._bytes_read(inner, inside, size)
      elif user.opcode in ("dynamic-slice", "gather"):
        total += hlo_text.type_bytes(user.type)
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        continue  # updated in place
      else:
        return size
    return min(total, size)

  def _collective_bytes(self, line: Instruction) -> tuple[str, float]:
    """Returns (axis, bytes that a chip sends) of a collective."""
    opcode = line.opcode.removesuffix("-start")
    group = self._replica_group(line)
    count = max(len(group), 1)
    parts = hlo_text.tuple_elements(line.type)
    # The type of a -start instruction includes its operands.
    if line.opcode.endswith("-start") and opcode in (
      "all-gather",
      "collective-permute",
    ):
      parts = hlo_text.tuple_elements(parts[1]) if len(parts) > 1 else parts
    size = sum(map(hlo_text.type_bytes, parts))
    share = (count - 1) / count
    sent = {
      "all-gather": share * size,
      "all-reduce": 2 * share * size,
      "all-to-all": share * size,
      "reduce-scatter": (count - 1) * size,
      "collective-permute": size,
    }[opcode]
    return self._mesh_axis(group), sent

  def _replica_group(self, line: Instruction) -> list[int]:
    """Returns the first chip and those that it communicates with."""
    text = line.attributes
    total = math.prod(self._mesh.values())
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}?,? ", text + " ")
    if pairs:
      all_pairs = [
        tuple(map(int, p)) for p in re.findall(r"(\d+),(\d+)", pairs[1])
      ]
      moved = [p for p in all_pairs if p[0] != p[1]]
      return list(moved[0]) if moved else []
    named = re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", text)
    if named:
      sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", named[1])}
      chosen = re.findall(r"'(\w+)'", named[2])
      return _axis_group(sizes, chosen)
    iota = re.search(
      r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    )
    if iota:
      shape, dims = (
        [int(n) for n in part.split(",")] for part in (iota[1], iota[2])
      )
      permutation = list(range(len(dims)))
      if iota[3]:
        permutation = [int(n) for n in iota[3].split(",")]
      return _iota_order(dims, permutation)[: shape[-1]]
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed and listed[1]:
      return [int(n) for n in listed[1].split(",")]
    return list(range(total))

  def _mesh_axis(self, group: Sequence[int]) -> str:
    """Returns the mesh axes along which chips differ, joined by +."""
    coordinates = [self._mesh_coordinates(chip) for chip in group]
    names = [
      name
      for i, name in enumerate(self._mesh)
      if len({c[i] for c in coordinates}) > 1
    ]
    return "+".join(names)

  def _mesh_coordinates(self, chip: int) -> list[int]:
    coordinates = []
    for size in reversed(self._mesh.values()):
      chip, at = divmod(chip, size)
      coordinates.append(at)
    return coordinates[::-1]


def _matmul_flops(lines: Mapping[str, Instruction], line: Instruction) -> float:
  """Returns the FLOPs of a matmul or attention kernel; else 0."""
  if line.opcode == "custom-call" and len(line.operands) > splash.QUERIES:
    queries = lines.get(line.operands[splash.QUERIES])
    shape = hlo_text.type_shape(queries.type) if queries else []
    return splash.flops(line.name, *shape) if len(shape) == 3 else 0.0
  if line.opcode not in ("convolution", "dot"):
    return 0.0
  left, right = (
    hlo_text.type_shape(lines[name].type) for name in line.operands[:2]
  )
  out = hlo_text.type_shape(line.type)
  if line.opcode == "dot":
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.attributes)
    dims = [int(n) for n in axes[1].split(",") if n] if axes else []
    return 2.0 * math.prod(out) * math.prod(left[i] for i in dims)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
  if labels is None:
    return 0.0
  total = 2.0
  for at, label in enumerate(labels[3]):
    total *= out[at] if label in "bf" else 1
  for at, label in enumerate(labels[2]):
    if label == "i":
      total *= right[at]
    elif label.isdigit():
      input_size = left[labels[1].index(label)]
      output_size = out[labels[3].index(label)]
      window = _window(line.attributes, int(label))
      total *= _kernel_overlaps(input_size, right[at], output_size, window)
  return total


def _window(attributes: str, axis: int) -> dict[str, int]:
  """Parses a convolution's stride, padding and dilations along an axis."""
  text = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(re.findall(r"(\w+)=([\w\-]+)", text[1])) if text else {}
  names = ("stride", "lhs_dilate", "rhs_dilate")
  window = {n: int(fields[n].split("x")[axis]) for n in names if n in fields}
  if "pad" in fields:
    window["pad"] = int(fields["pad"].split("x")[axis].split("_")[0])
  return window


def _kernel_overlaps(
  size: int, kernel: int, out: int, window: Mapping[str, int]
) -> int:
  """Counts the multiplications of input and kernel along one axis."""
  spread = window.get("lhs_dilate", 1)
  reach = (size - 1) * spread
  starts = (
    o * window.get("stride", 1) - window.get("pad", 0) for o in range(out)
  )
  return sum(
    0 <= at <= reach and at % spread == 0
    for start in starts
    for at in range(
      start,
      start + kernel * window.get("rhs_dilate", 1),
      window.get("rhs_dilate", 1),
    )
  )


def _axis_group(sizes: Mapping[str, int], chosen: Sequence[str]) -> list[int]:
  """Returns the chips of a mesh that differ on the chosen axes only."""
  ranges = [range(n if name in chosen else 1) for name, n in sizes.items()]
  strides = [
    math.prod(list(sizes.values())[i + 1 :]) for i in range(len(sizes))
  ]
  return [
    sum(a * b for a, b in zip(at, strides, strict=True))
    for at in itertools.product(*ranges)
  ]


def _iota_order(dims: Sequence[int], permutation: Sequence[int]) -> list[int]:
  """Returns arange(prod(dims)) reshaped, transposed and flattened."""
  strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
  return [
    sum(n * strides[axis] for n, axis in zip(at, permutation, strict=True))
    for at in itertools.product(*(range(dims[axis]) for axis in permutation))
  ]
