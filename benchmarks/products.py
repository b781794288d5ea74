"""Times the matmuls of decoding: a few rows times a matrix read from memory.

    python -m benchmarks.products --rows=16 --inputs=768 --outputs=3072

Prints a line of JSON for each: the matmul as compiled for decoding, with one
matrix that stays in the cache and with many matrices; the matmul with the
other choice of XLA's matmul library; a loop of reductions without copies; and
a single row, whose time is that of reading the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from instructgpt_jax import streams
from instructgpt_jax.cli import process_settings
from instructgpt_jax.distributed.compiler_options import decode_compiler_options
from instructgpt_jax.types import Array

Product = Callable[[Array, Array], Array]  # [O, I], [B, I] → [O, B]
_TALL, _WIDE = 8, 2  # a block of outputs and rows, kept in registers
_LOOP = {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": 512}


def product(kernel: Array, x: Array) -> Array:
  """Multiplies as decoding does."""
  return kernel @ x.T


def loop(kernel: Array, x: Array) -> Array:
  """Multiplies with one reduction per block of outputs and rows."""
  outputs, inputs = kernel.shape
  tall = kernel.reshape(-1, 1, _TALL, inputs)
  wide = x.reshape(1, -1, _WIDE, inputs)
  pairs = [(i, j) for i in range(_TALL) for j in range(_WIDE)]
  sums = jax.lax.reduce(
    tuple(tall[:, :, i] * wide[:, :, j] for i, j in pairs),
    (jnp.float32(0),) * len(pairs),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    (2,),
  )
  blocks = jnp.stack(sums).reshape(_TALL, _WIDE, outputs // _TALL, -1)
  return blocks.transpose(2, 0, 3, 1).reshape(outputs, -1)


def seconds(
  times: Product,
  kernels: list[Array],
  x: Array,
  steps: int,
  options: dict[str, bool | int | str],
) -> float:
  """Returns the median time of a matmul over runs with all kernels."""

  def run(kernels, x):
    for kernel in kernels:
      # Each matmul depends on the one before.
      x = x + 1e-9 * times(kernel, x)[0][:, None]
    return x

  compiled = jax.jit(run, compiler_options=options)
  times_of_runs = measure.time_steps(
    lambda index: compiled(kernels, x), steps, 2
  )
  return times_of_runs["step_s"]["median"] / len(kernels)


def main(argv: Sequence[str] | None = None) -> int:
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.products",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--rows", type=int, default=16, help="rows B, even")
  parser.add_argument("--inputs", type=int, default=768)
  parser.add_argument(
    "--outputs", type=int, default=3072, help="outputs, a multiple of 8"
  )
  parser.add_argument(
    "--mib",
    type=int,
    default=200,
    help="size of all matrices in MiB; at most 64",
  )
  parser.add_argument("--steps", type=int, default=20, help="timed runs")
  flags = parser.parse_args(argv)
  if min(flags.inputs, flags.outputs, flags.mib, flags.steps) < 1:
    parser.error("sizes and steps must be at least 1")
  if flags.rows % _WIDE or flags.outputs % _TALL or flags.rows < _WIDE:
    parser.error("--rows must be even, --outputs a multiple of 8")
  process_settings.silence_libraries()
  size = 4 * flags.inputs * flags.outputs
  rng = np.random.default_rng(0)
  count = min(max(2, flags.mib * 2**20 // size), 64)
  shape = (flags.outputs, flags.inputs)
  many = [
    jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(count)
  ]
  one = many[:1] * count
  rows = jnp.asarray(
    rng.standard_normal((flags.rows, flags.inputs), np.float32)
  )
  without = decode_compiler_options(0)
  chosen = decode_compiler_options(min(flags.inputs, flags.outputs))
  other, kind = ({}, "with") if chosen else (without, "without")
  for name, times, kernels, x, options in (
    ("decoding, one matrix", product, one, rows, chosen),
    ("decoding", product, many, rows, chosen),
    (f"{kind} the library", product, many, rows, other),
    ("loop, one matrix", loop, one, rows, without | _LOOP),
    ("loop", loop, many, rows, without | _LOOP),
    ("one row", product, many, rows[:1], chosen),
  ):
    took = seconds(times, kernels, x, flags.steps, options)
    line = {
      "product": name,
      "ms": 1e3 * took,
      "weights_gb_per_s": size / took / 1e9,
      "gflops": 2 * flags.inputs * flags.outputs * len(x) / took / 1e9,
    }
    print(json.dumps(line), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
