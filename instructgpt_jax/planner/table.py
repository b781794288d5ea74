"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from instructgpt_jax.planner.cost import Cost, Times

GB = 1e9


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
  """Rows of words as lines; the first column to the left, others right."""
  rows = [list(row) for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      word.rjust(width) if i else word.ljust(width)
      for i, (word, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def digits(value: float) -> str:
  """Three digits, or all of a large number's."""
  return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def gigabytes(size: float) -> str:
  """Bytes in GB."""
  return digits(size / GB)


def number(value: float) -> str:
  """Three digits and a letter: 1.05M, 175B."""
  for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if value >= size:
      return f"{value / size:.3g}{letter}"
  return f"{value:.3g}"


def held(parts: Mapping[str, float]) -> list[str]:
  """What a chip holds all the time."""
  rows = [(f"  {name}", gigabytes(size)) for name, size in parts.items()]
  return columns([*rows, ("  held", gigabytes(sum(parts.values())))])


def programs(
  costs: Mapping[str, tuple[int, Cost, Times]], kept: float, axes: Sequence[str]
) -> list[str]:
  """A line for each program."""
  head = ["program", "times", "TFLOP", "memory", *axes, "temporary", "peak"]
  rows = [[*head, "bound", "seconds", "or", "compiled"]]
  for name, (count, cost, times) in costs.items():
    sent = dict.fromkeys(axes, 0.0)
    for names, size in cost.network.items():
      first = next((n for n in axes if n in names.split("+")), axes[0])
      sent[first] += size
    made = f"{cost.compiling:.0f} s" if cost.compiling is not None else "no"
    rows.append(
      [
        name,
        str(count),
        digits(cost.flops / 1e12),
        gigabytes(cost.memory),
        *(gigabytes(sent[axis]) for axis in axes),
        gigabytes(cost.temporary),
        gigabytes(kept + cost.temporary),
        times.bound,
        f"{times.least:.3g}",
        f"{times.most:.3g}",
        made,
      ]
    )
  return columns(rows)
