"""Parser for HLO text: computations, instructions and types."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BITS = {
  "pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
  "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
  "c64": 64, "s4": 4, "u4": 4, "s2": 2, "u2": 2,
}  # fmt: skip
# Metadata of a kernel spans several lines.
_KERNEL_METADATA = re.compile(r"kernel_metadata=\{\n.*?\n\}", re.DOTALL)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
  """Instruction of a computation."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool


def parse_module(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Parses a module.

  Returns:
    Computation → name → instruction, and the name of the entry computation.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", None
  for line in _KERNEL_METADATA.sub("", text).splitlines():
    if line.endswith("{") and " = " not in line.split("(")[0]:
      match = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
      if match and "(" in line:
        current = computations.setdefault(match[2], {})
        entry = match[2] if match[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (instruction := _parse_instruction(line)):
      current[instruction.name] = instruction
  return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
  match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if match is None:
    return None
  rest = line[match.end() :]
  end = _closing_bracket(rest, 0) if rest.startswith("(") else rest.index(" ")
  kind, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  start = len(opcode)
  end = _closing_bracket(rest, start)
  inside = rest[start + 1 : end - 1]
  attributes = rest[end:]
  if opcode in ("parameter", "constant"):
    attributes = inside
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(
    match[2], kind, opcode, operands, attributes, bool(match[1])
  )


def _closing_bracket(text: str, start: int) -> int:
  """Returns the index after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i + 1
  return len(text)


def tuple_elements(kind: str) -> list[str]:
  """Splits a tuple type into its element types."""
  if not kind.startswith("("):
    return [kind]
  elements, depth, start = [], 0, 1
  for i, letter in enumerate(kind):
    depth += (letter in "({[") - (letter in ")}]")
    if (letter == "," and depth == 1) or i == len(kind) - 1:
      elements.append(kind[start:i].strip())
      start = i + 1
  return [part for part in elements if part]


def type_bytes(kind: str, main: bool = False) -> float:
  """Returns the bytes of a type; with `main`, only those in main memory."""
  total = 0.0
  for name, dims, layout in _ARRAY.findall(kind):
    if name in _BITS and not (main and "S(" in layout):
      numbers = math.prod(int(n) for n in dims.split(",") if n)
      total += numbers * _BITS[name] / 8
  return total


def hbm_bytes(kind: str) -> float:
  """Returns the bytes of a type in the chip's main memory."""
  return type_bytes(kind, main=True)


def called_computations(line: Instruction, *names: str) -> Iterator[str]:
  """Yields the computations that attributes of an instruction name."""
  for name in names:
    for many, one in re.findall(
      rf"\b{name}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", line.attributes
    ):
      yield from re.findall(r"[\w.\-]+", many or one)


def type_shape(kind: str) -> list[int]:
  """Returns the shape of an array type; [] if it is none."""
  match = _ARRAY.match(kind)
  return [int(n) for n in match[2].split(",") if n] if match else []


def root_instruction(lines: Mapping[str, Instruction]) -> Instruction:
  """Returns the root instruction of a computation."""
  return next(line for line in lines.values() if line.root)
