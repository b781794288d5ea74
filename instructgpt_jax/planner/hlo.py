"""What a compiled program does: operations, and bytes that it moves.

Read from the compiler's own text, since its cost analysis counts the body of a
loop once. Of a fusion, what it reads and writes is counted, and of an array of
which it only takes or replaces a slice, that slice.
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

_FREE = {
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
_MOVES = {
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
}


class Chunk(NamedTuple):
  """What runs at once: one fusion, or one instruction by itself."""

  name: str
  times: float
  flops: float  # of matrix products, each time
  memory: float  # bytes of main memory read and written, each time


@dataclasses.dataclass
class Done:
  """What a program does on one chip."""

  chunks: list[Chunk] = dataclasses.field(default_factory=list)
  network: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )  # bytes sent along each axis of the mesh

  @property
  def flops(self) -> float:
    """Operations of matrix products."""
    return sum(c.times * c.flops for c in self.chunks)

  @property
  def memory(self) -> float:
    """Bytes of main memory read and written."""
    return sum(c.times * c.memory for c in self.chunks)

  def seconds(self, flops: float, bandwidth: float) -> float:
    """Each chunk bound by operations or by memory, one after the other."""
    return sum(
      c.times * max(c.flops / flops, c.memory / bandwidth) for c in self.chunks
    )


class Module:
  """A compiled module, by computation."""

  def __init__(self, text: str, mesh: Mapping[str, int], trips: int):
    """Reads a module.

    Args:
      text: of the compiled module.
      mesh: name → size of the mesh's axes, outermost first.
      trips: of a loop whose end only the data tell.
    """
    self._mesh, self._trips = dict(mesh), trips
    self._computations, self._entry = hlo_text.read(text)

  def done(self) -> Done:
    """By one run of the program, on one chip."""
    found = Done()
    self._walk(self._entry, 1, found)
    return found

  def _walk(self, name: str, times: float, found: Done) -> None:
    lines = self._computations[name]
    for line in lines.values():
      opcode = line.opcode.removesuffix("-start")
      if opcode == "while":
        trips = self._trips_of(line)
        for part in hlo_text.called(line, "body"):
          self._walk(part, times * trips, found)
      elif opcode in ("call", "async"):
        for part in hlo_text.called(line, "to_apply", "calls"):
          self._walk(part, times, found)
      elif opcode == "conditional":
        parts = hlo_text.called(line, "branch_computations", "true_computation")
        for part in itertools.islice(parts, 1):
          self._walk(part, times, found)
      elif line.opcode == "fusion":
        inner = next(hlo_text.called(line, "calls"))
        flops = self._inside(inner, times, found)
        memory = self._of_fusion(lines, line, inner)
        found.chunks.append(Chunk(line.name, times, flops, memory))
      elif opcode in _MOVES:
        self._send(line, name, times, found)
      elif opcode not in _FREE and not line.opcode.endswith("-done"):
        flops = _product(lines, line)
        memory = self._of_other(lines, line)
        found.chunks.append(Chunk(line.name, times, flops, memory))

  def _inside(self, name: str, times: float, found: Done) -> float:
    """Operations of a fusion's computation; notes what it sends."""
    lines = self._computations[name]
    total = 0.0
    for line in lines.values():
      if line.opcode.removesuffix("-start") in _MOVES:
        self._send(line, name, times, found)
      elif line.opcode == "fusion":
        total += self._inside(
          next(hlo_text.called(line, "calls")), times, found
        )
      else:
        total += _product(lines, line)
    return total

  def _send(
    self, line: Instruction, name: str, times: float, found: Done
  ) -> None:
    axis, size = self._sent(line)
    # What a reduce-scatter is here: a fusion with the slice of a sum.
    scatters = line.opcode == "all-reduce" and "all-reduce-scatter" in name
    found.network[axis] += times * size * (0.5 if scatters else 1)

  def _trips_of(self, line: Instruction) -> int:
    """The number that a loop counts to, where it is a constant."""
    known = re.search(r'known_trip_count[^\d]*"?(\d+)', line.attributes)
    if known:
      return int(known[1])
    condition = self._computations[next(hlo_text.called(line, "condition"))]
    most = self._most(condition)
    if most is not None:
      return most
    body = self._computations[next(hlo_text.called(line, "body"))]
    numbers = {
      some.name: int(some.attributes)
      for some in (*condition.values(), *body.values())
      if some.opcode == "constant" and some.attributes.isdigit()
    }
    root = hlo_text.root(condition)
    limit = next((numbers[n] for n in root.operands if n in numbers), None)
    if root.opcode == "and":  # none of its parts counts
      return self._trips
    counter = condition.get(root.operands[0])
    if root.opcode != "compare":  # the comparison is a fusion
      inside = (numbers[n] for n in condition if n in numbers)
      limit = max(inside, default=None)
    if limit is None:
      return self._trips
    index = re.search(r"index=(\d+)", counter.attributes) if counter else None
    if index is None:
      return limit
    after = body.get(hlo_text.root(body).operands[int(index[1])])
    while after is not None and after.opcode in ("copy", "bitcast"):
      after = body.get(after.operands[0])
    steps = (
      [numbers[n] for n in after.operands if n in numbers] if after else []
    )
    return -(-limit // max(steps, default=1))

  def _most(self, condition: Mapping[str, Instruction]) -> int | None:
    """What one of a condition's parts says its counter to be less than."""
    root = hlo_text.root(condition)
    if root.opcode == "fusion":
      return self._most(
        self._computations[next(hlo_text.called(root, "calls"))]
      )
    if root.opcode != "and":
      return None
    for part in (condition[name] for name in root.operands):
      if part.opcode == "compare" and "direction=LT" in part.attributes:
        limit = condition[part.operands[1]]
        if limit.opcode == "constant":
          return int(limit.attributes)
    return None

  def _of_other(
    self, lines: Mapping[str, Instruction], line: Instruction
  ) -> float:
    if line.opcode == "dynamic-slice":
      return 2 * hlo_text.main_memory(line.type)
    if line.opcode == "dynamic-update-slice":
      return 2 * hlo_text.main_memory(lines[line.operands[1]].type)
    if line.opcode == "copy-start":  # (destination, source, context)
      return sum(map(hlo_text.main_memory, hlo_text.parts(line.type)[:2]))
    read = sum(
      hlo_text.main_memory(lines[n].type) for n in line.operands if n in lines
    )
    return read + hlo_text.main_memory(line.type)

  def _of_fusion(
    self, lines: Mapping[str, Instruction], line: Instruction, inner: str
  ) -> float:
    body = self._computations[inner]
    total = 0.0
    for parameter in body.values():
      if parameter.opcode == "parameter":
        given = lines.get(line.operands[int(parameter.attributes)])
        size = hlo_text.main_memory(given.type if given else parameter.type)
        total += self._read(inner, parameter.name, size)
    root = hlo_text.root(body)
    outer = hlo_text.parts(line.type)
    roots = (
      [body[n] for n in root.operands] if root.opcode == "tuple" else [root]
    )
    for one, written in zip(roots, outer, strict=False):
      while one.opcode in ("bitcast", "copy", "convert") and one.operands:
        one = body[one.operands[0]]
      if one.opcode == "dynamic-update-slice":
        total += min(
          hlo_text.main_memory(written),
          hlo_text.size(body[one.operands[1]].type),
        )
      else:
        total += hlo_text.main_memory(written)
    return total

  def _read(self, computation: str, name: str, size: float) -> float:
    """Of an array of a fusion, no more than the slices that are taken of it."""
    body = self._computations[computation]
    total = 0.0
    for user in body.values():
      if name not in user.operands:
        continue
      if user.opcode == "bitcast":
        total += self._read(computation, user.name, size)
      elif user.opcode == "fusion":
        inner = next(hlo_text.called(user, "calls"))
        index = str(user.operands.index(name))
        inside = next(
          x.name
          for x in self._computations[inner].values()
          if x.opcode == "parameter" and x.attributes == index
        )
        total += self._read(inner, inside, size)
      elif user.opcode in ("dynamic-slice", "gather"):
        total += hlo_text.size(user.type)
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        continue  # replaced in place
      else:
        return size
    return min(total, size)

  def _sent(self, line: Instruction) -> tuple[str, float]:
    """(axis, bytes that a chip sends) of a collective operation."""
    opcode = line.opcode.removesuffix("-start")
    group = self._group(line)
    count = max(len(group), 1)
    parts = hlo_text.parts(line.type)
    # A started operation's type names what it is given as well.
    if line.opcode.endswith("-start") and opcode in (
      "all-gather",
      "collective-permute",
    ):
      parts = hlo_text.parts(parts[1]) if len(parts) > 1 else parts
    size = sum(map(hlo_text.size, parts))
    share = (count - 1) / count
    sent = {
      "all-gather": share * size,
      "all-reduce": 2 * share * size,
      "all-to-all": share * size,
      "reduce-scatter": (count - 1) * size,
      "collective-permute": size,
    }[opcode]
    return self._axis(group), sent

  def _group(self, line: Instruction) -> list[int]:
    """Chips that the first chip exchanges with, itself included."""
    text = line.attributes
    total = math.prod(self._mesh.values())
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}?,? ", text + " ")
    if pairs:
      found = [tuple(map(int, p)) for p in re.findall(r"(\d+),(\d+)", pairs[1])]
      moved = [p for p in found if p[0] != p[1]]
      return list(moved[0]) if moved else []
    named = re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", text)
    if named:
      sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", named[1])}
      chosen = re.findall(r"'(\w+)'", named[2])
      return _line(sizes, chosen)
    iota = re.search(
      r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    )
    if iota:
      shape, dims = (
        [int(n) for n in part.split(",")] for part in (iota[1], iota[2])
      )
      turned = list(range(len(dims)))
      if iota[3]:
        turned = [int(n) for n in iota[3].split(",")]
      return _iota(dims, turned)[: shape[-1]]
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed and listed[1]:
      return [int(n) for n in listed[1].split(",")]
    return list(range(total))

  def _axis(self, group: Sequence[int]) -> str:
    """The mesh's axes along which these chips lie, joined by +."""
    places = [self._place(chip) for chip in group]
    names = [
      name
      for i, name in enumerate(self._mesh)
      if len({place[i] for place in places}) > 1
    ]
    return "+".join(names)

  def _place(self, chip: int) -> list[int]:
    found = []
    for size in reversed(self._mesh.values()):
      chip, at = divmod(chip, size)
      found.append(at)
    return found[::-1]


def _product(lines: Mapping[str, Instruction], line: Instruction) -> float:
  """Operations of a matrix product or of attention; 0 of anything else."""
  if line.opcode == "custom-call" and len(line.operands) > splash.QUERIES:
    queries = lines.get(line.operands[splash.QUERIES])
    shape = hlo_text.shape(queries.type) if queries else []
    return splash.flops(line.name, *shape) if len(shape) == 3 else 0.0
  if line.opcode not in ("convolution", "dot"):
    return 0.0
  left, right = (hlo_text.shape(lines[name].type) for name in line.operands[:2])
  out = hlo_text.shape(line.type)
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
      given = left[labels[1].index(label)]
      found = out[labels[3].index(label)]
      window = _window(line.attributes, int(label))
      total *= _meetings(given, right[at], found, window)
  return total


def _window(attributes: str, axis: int) -> dict[str, int]:
  """A convolution's stride, padding and dilations along an axis."""
  text = re.search(r"window=\{([^}]*)\}", attributes)
  given = dict(re.findall(r"(\w+)=([\w\-]+)", text[1])) if text else {}
  names = ("stride", "lhs_dilate", "rhs_dilate")
  found = {n: int(given[n].split("x")[axis]) for n in names if n in given}
  if "pad" in given:
    found["pad"] = int(given["pad"].split("x")[axis].split("_")[0])
  return found


def _meetings(
  given: int, kernel: int, out: int, window: Mapping[str, int]
) -> int:
  """How often a number of the input meets one of the kernel, along an axis."""
  spread = window.get("lhs_dilate", 1)
  reach = (given - 1) * spread
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


def _line(sizes: Mapping[str, int], chosen: Sequence[str]) -> list[int]:
  """Chips of a mesh of these sizes that differ on the chosen axes only."""
  ranges = [range(n if name in chosen else 1) for name, n in sizes.items()]
  strides = [
    math.prod(list(sizes.values())[i + 1 :]) for i in range(len(sizes))
  ]
  return [
    sum(a * b for a, b in zip(at, strides, strict=True))
    for at in itertools.product(*ranges)
  ]


def _iota(dims: Sequence[int], turned: Sequence[int]) -> list[int]:
  """0, 1, … in this shape, its axes turned, flat."""
  strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
  return [
    sum(n * strides[axis] for n, axis in zip(at, turned, strict=True))
    for at in itertools.product(*(range(dims[axis]) for axis in turned))
  ]
