"""Times this project's steps and those of other libraries on the same work.

  python -m benchmarks.run --work=sft --model=S
  python -m benchmarks.run --work=reward,generate --model=S,M --peer
  python -m benchmarks.run --work=reward --completions=9 --layout=shared,rows

Prints a line of JSON per measurement. Each runs in a new process, so that peak
memory and compile time are separate. With --peer, each round also times the
peers' harness, and a line of ratios follows.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from instructgpt_jax import streams
from instructgpt_jax.cli import process_settings

MODELS = ("S", "M", "125m", "350m", "1.3b", "1.3b-chat", "tiny", "tiny-chat")
WORKS = ("sft", "pretrain", "reward", "generate", "ppo")
LAYOUTS = ("shared", "rows", "pairs")
# Work → its name in the peers' harness, and the peers that support it.
PEERS = {
  "sft": ("sft", ("trl", "tunix", "torch")),
  "reward": ("rm", ("trl", "tunix", "torch")),
  "generate": ("generate", ("hf", "tunix")),
  "ppo": ("ppo", ("trl", "tunix", "torch")),
}
VARIANTS = {  # others use the harness's default
  ("torch", "sft"): "eager,compile",
  ("torch", "rm"): "kway",
  ("tunix", "rm"): "kway",
}
CACHE = {
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# As in the Makefile; the same for this project and for peers.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def _comma_list(allowed: Sequence[str]):
  def parse(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
      if name not in allowed:
        raise argparse.ArgumentTypeError(
          f"{name!r} is not one of {', '.join(allowed)}"
        )
    return chosen

  return parse


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.run",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  every = _comma_list(sorted({p for _, peers in PEERS.values() for p in peers}))
  add = parser.add_argument
  add("--work", type=_comma_list(WORKS), default=list(WORKS), help="comma list")
  add(
    "--model",
    type=_comma_list(MODELS),
    default=["S"],
    help="comma list; S and M: sizes of the peers (float32); others: bfloat16",
  )
  add("--steps", type=int, default=10, help="timed steps")
  add("--warmup", type=int, default=2, help="steps before the timed ones")
  add("--rounds", type=int, default=1, help="rounds of measurements")
  add(
    "--completions",
    type=int,
    default=4,
    help="completions per prompt of the reward model",
  )
  add(
    "--layout",
    type=_comma_list(LAYOUTS),
    default=["shared"],
    help="layouts of the reward model's rows, comma list",
  )
  add(
    "--peer",
    type=every,
    nargs="?",
    const=every("hf,torch,trl,tunix"),
    default=[],
    help="time peers too: all of them, or a comma list",
  )
  add(
    "--harness",
    type=pathlib.Path,
    default=pathlib.Path("../shared/peers"),
    help="directory of the peers' run.py",
  )
  add(
    "--cold_only",
    action="store_true",
    help="skip the second start with a warm cache",
  )
  add("--child", action="store_true", help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  if min(flags.steps, flags.rounds, flags.warmup) < 1 or flags.completions < 2:
    parser.error(
      "--steps, --warmup and --rounds must be at least 1, --completions 2"
    )
  if flags.peer and not (flags.harness / "run.py").exists():
    parser.error(f"{flags.harness} has no run.py; give --harness=DIR")
  if flags.peer and (flags.completions != 4 or set(flags.model) - {"S", "M"}):
    parser.error(
      "the peers' work has 4 completions and models S and M; leave --peer out"
    )
  return flags


def measure_work(flags: argparse.Namespace) -> dict[str, Any]:
  """Measures one work in this process and returns its line."""
  from benchmarks import measure, ours, work

  (name,), (model,), (layout,) = flags.work, flags.model, flags.layout
  k = flags.completions
  step = ours.make(name, model, completions=k, layout=layout)
  times = measure.time_steps(step, flags.steps, flags.warmup)
  # Before the arrays of the ceilings are allocated.
  memory = measure.peak_memory_mib()
  limits = measure.ceilings(work.MODELS[model].dtype)
  median = times["step_s"]["median"]
  rate = work.operations(name, model, k).total / median / 1e9
  line = {"who": "ours", "work": name, "model": model}
  if name == "reward":
    line |= {"completions": k, "layout": layout}
  line |= times
  if name == "generate":
    prefill = measure.time_steps(ours.prefill(model), flags.steps, flags.warmup)
    decode = median - prefill["step_s"]["median"]
    decode /= work.SHAPES[model].new_tokens - 1
    size = work.decode_bytes(model) / 1e9
    line["decode"] = {
      "seconds_a_token": decode,
      "share_of_floor": size / limits["copy_gb_per_s"] / decode,
      "share_of_read_floor": size / limits["read_gb_per_s"] / decode,
    }
  return line | {
    "rates": {k: n / median for k, n in work.units(name, model, k).items()},
    "gflops": rate,
    "share_of_ceiling": rate / limits["gflops"],
    "ceilings": limits,
    "peak_memory_mib": memory,
    "versions": measure.versions(),
    "machine": measure.machine(),
  }


def _lines(command: Sequence[str], **env: str) -> list[dict[str, Any]]:
  """Runs a command and returns the JSON lines that it prints."""
  done = subprocess.run(
    command,
    env={**os.environ, **MALLOC, **env},
    stdout=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    sys.exit(f"error: {' '.join(command)} ended with {done.returncode}")
  return [
    json.loads(line)
    for line in done.stdout.splitlines()
    if line.startswith("{")
  ]


def _ours(flags, name: str, model: str, layout: str, cache: str, **changes):
  options = {
    "work": name,
    "model": model,
    "layout": layout,
    "steps": flags.steps,
    "warmup": flags.warmup,
    "completions": flags.completions,
    **changes,
  }
  command = [sys.executable, "-m", "benchmarks.run", "--child"]
  command += [f"--{key}={value}" for key, value in options.items()]
  (line,) = _lines(command, JAX_COMPILATION_CACHE_DIR=cache, **CACHE)
  return line


def compare(flags: argparse.Namespace, name: str, model: str) -> None:
  """Prints a work's lines, and ratios to other layouts and peers."""
  seconds: dict[str, list[float]] = {}
  layouts = flags.layout if name == "reward" else ["shared"]
  theirs, peers = PEERS.get(name, ("", ()))

  def report(line: dict[str, Any], label: str) -> None:
    print(json.dumps(line), flush=True)
    seconds.setdefault(label, []).append(line["step_s"]["median"])

  with tempfile.TemporaryDirectory() as cache:
    for turn in range(flags.rounds):
      for layout in layouts:
        line = _ours(flags, name, model, layout, cache)
        if turn == 0 and not flags.cold_only:
          again = _ours(flags, name, model, layout, cache, steps=1, warmup=1)
          line["first_step_warm_s"] = again["first_step_s"]
          line["peak_memory_warm_mib"] = again["peak_memory_mib"]
        report(line, layout)
      for peer in [p for p in flags.peer if p in peers]:
        command = [sys.executable, str(flags.harness / "run.py")]
        command += ["--peer", peer, "--work", theirs, "--model", model]
        command += ["--variant", VARIANTS.get((peer, theirs), "default")]
        for line in _lines([*command, "--steps", str(flags.steps)]):
          report(line, f"{peer} {line.get('variant', '')}".strip())
  first, *others = seconds
  if others:
    # By round, since the host may be slower in some rounds.
    ratios = {
      label: statistics.median(
        b / a for a, b in zip(seconds[first], seconds[label], strict=True)
      )
      for label in others
    }
    line = {"work": name, "model": model, f"times_faster_{first}": ratios}
    print(json.dumps(line), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  streams.accept_all_text()
  flags = parse(argv)
  if flags.child:
    process_settings.silence_libraries()
    process_settings.trim_malloc_after_compile()
    print(json.dumps(measure_work(flags)))
    return 0
  for model in flags.model:
    for name in flags.work:
      compare(flags, name, model)
  return 0


if __name__ == "__main__":
  sys.exit(main())
