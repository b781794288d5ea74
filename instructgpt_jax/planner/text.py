"""Formats plans and rankings of layouts as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from instructgpt_jax import configs
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.planner import hardware
from instructgpt_jax.planner.cost import Cost, Times
from instructgpt_jax.planner.plan import Plan
from instructgpt_jax.planner.workload import bytes_per_chip

GB = 1e9
_HOUR = 3600.0
_MAX_LAYOUTS = 12  # lines of a ranking


def align(rows: Iterable[Sequence[str]]) -> list[str]:
  """Aligns rows of words; the first column to the left, others right."""
  rows = [list(row) for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      word.rjust(width) if i else word.ljust(width)
      for i, (word, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def format_number(value: float) -> str:
  """Formats three digits; all digits from 1,000 on."""
  return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def format_gb(size: float) -> str:
  """Formats bytes as GB."""
  return format_number(size / GB)


def format_count(value: float) -> str:
  """Formats three digits and a unit: 1.05M, 175B."""
  for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if value >= size:
      return f"{value / size:.3g}{letter}"
  return f"{value:.3g}"


def resident_lines(parts: Mapping[str, float]) -> list[str]:
  """Formats a line for each resident array, and their sum."""
  rows = [(f"  {name}", format_gb(size)) for name, size in parts.items()]
  return align([*rows, ("  resident", format_gb(sum(parts.values())))])


def program_lines(
  costs: Mapping[str, tuple[int, Cost, Times]],
  resident_bytes: float,
  axes: Sequence[str],
) -> list[str]:
  """Formats a line for each program."""
  head = ["program", "times", "TFLOP", "memory", *axes, "temporary", "peak"]
  rows = [[*head, "bound", "seconds", "or", "compiled"]]
  for name, (count, cost, times) in costs.items():
    sent = dict.fromkeys(axes, 0.0)
    for names, size in cost.sent.items():
      first = next((n for n in axes if n in names.split("+")), axes[0])
      sent[first] += size
    seconds = cost.compile_seconds
    compiled = "no" if seconds is None else f"{seconds:.0f} s"
    rows.append(
      [
        name,
        str(count),
        format_number(cost.flops / 1e12),
        format_gb(cost.hbm_bytes),
        *(format_gb(sent[axis]) for axis in axes),
        format_gb(cost.temporary_bytes),
        format_gb(resident_bytes + cost.temporary_bytes),
        times.bound,
        f"{times.overlapped:.3g}",
        f"{times.serial:.3g}",
        compiled,
      ]
    )
  return align(rows)


def format_plan(plan: Plan, name: str, price: float) -> str:
  """Formats a plan as text.

  Args:
    plan: the plan.
    name: title of the experiment.
    price: price of a chip hour; 0 prints none.
  """
  topology, workload = plan.topology, plan.workload
  layout = ", ".join(
    f"{a} {n}" for a, n in zip(mesh_lib.AXES, plan.mesh_sizes, strict=True)
  )
  model = workload.model
  lines = [
    f"{name} on {topology}: {topology.num_chips:,} chips as {layout}",
    f"{format_count(workload.parameters)} parameters,"
    f" vocabulary {model.padded_vocab_size:,};"
    f" each {workload.unit}: {workload.examples:,} {workload.example_name},"
    f" {workload.tokens:,} tokens trained on",
    "",
    "GB on each chip",
    *resident_lines(plan.resident),
    *(
      f"  at peak also {name}: {format_gb(size)}"
      for name, size in plan.saved.items()
    ),
    f"  restored from a checkpoint of"
    f" {format_gb(workload.checkpoint_bytes)} in all:"
    f" {format_gb(bytes_per_chip(workload.state))}",
    "",
    "each run of a program on each chip, GB",
    *program_lines(plan.costs, plan.resident_bytes, mesh_lib.AXES),
    "",
  ]
  overlapped, serial = plan.seconds(), plan.seconds(serial=True)
  lines.append(
    f"each {workload.unit}: {overlapped:.3g} s if communication of weights and"
    f" gradients overlaps with matmuls, {serial:.3g} s if nothing overlaps;"
    " model FLOP utilisation"
    f" {plan.utilisation():.0%} or {plan.utilisation(serial=True):.0%}"
  )
  if workload.episodes:
    units = math.ceil(workload.episodes / workload.examples)
    hours = [units * seconds / _HOUR for seconds in (overlapped, serial)]
    lines.append(
      f"{workload.episodes:,} episodes: {hours[0]:.3g} to {hours[1]:.3g} hours"
      + _format_cost([h * topology.num_chips for h in hours], price)
    )
  elif price:
    hours = [topology.num_chips * s / _HOUR for s in (overlapped, serial)]
    lines.append(f"1,000 steps{_format_cost([1000 * h for h in hours], price)}")
  lines.append(_verdict(plan))
  return "\n".join(lines)


def _verdict(plan: Plan) -> str:
  """Formats whether the plan fits, the memory and the margin."""
  chip = plan.topology.chip
  parts = [
    f"{'fits' if plan.fits else 'does not fit'}: at most"
    f" {format_gb(plan.peak_bytes)} of {format_gb(plan.usable_bytes)} GB"
  ]
  share = hardware.memory_fraction(chip)
  if chip.platform == "cuda":
    parts.append(
      f"JAX reserves {share:.0%} of a GPU's {format_gb(chip.memory)} GB"
      f" ({hardware.FRACTION})"
    )
  if not plan.compiled:
    parts.append(
      f"{hardware.MARGIN:.0%} are left for the error of the estimate"
    )
  return "; ".join(parts)


def _format_cost(hours: Sequence[float], price: float) -> str:
  """Formats chip hours, and their price if there is one."""
  text = f", {hours[0]:,.0f} to {hours[1]:,.0f} chip hours"
  if price:
    text += f", {price * hours[0]:,.0f} to {price * hours[1]:,.0f} at {price:g}"
  return text


def format_layouts(
  plans: Sequence[tuple[configs.Mesh, Plan]], unit: str
) -> str:
  """Formats ranked layouts as a"""
  head = (*mesh_lib.AXES, "peak GB", "fits", f"s/{unit}", "or", "MFU")
  rows = [head]
  for mesh, plan in plans[:_MAX_LAYOUTS]:
    rows.append(
      (
        *(str(getattr(mesh, axis)) for axis in mesh_lib.AXES),
        format_gb(plan.peak_bytes),
        "yes" if plan.fits else "no",
        f"{plan.seconds():.3g}",
        f"{plan.seconds(serial=True):.3g}",
        f"{plan.utilisation():.0%}",
      )
    )
  return "\n".join(align(rows))
