"""Times the start of each stage, without and with a compilation cache.

    make demo
    python -m benchmarks.start --runs=runs/demo

Starts each stage of a finished pipeline twice, with its config in a new
directory, and ends it after its first step. The first start has an empty
compilation cache; the second uses the cache of the first. Prints a line of JSON
per stage, in seconds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from instructgpt_jax import streams

_STAGES = ("pretrain", "sft", "policy_init", "reward", "ppo", "ppo_ptx")
_TIMEOUT = 600.0  # seconds


def seconds_to_first_step(
  config: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path
) -> float:
  """Runs a stage until its first line of metrics, then kills it."""
  experiment = json.loads(config.read_text(encoding="utf-8"))["experiment"]
  log = workdir.with_suffix(".log")
  metrics = workdir / "metrics.jsonl"
  began = time.perf_counter()
  with open(log, "w", encoding="utf-8") as out:
    run = subprocess.Popen(
      [
        *(sys.executable, "-m", f"experiments.{experiment}"),
        f"--config={config}",
        f"--workdir={workdir}",
        f"--run.compile_cache={cache}",
        "--run.log_every=1",
      ],
      stdout=out,
      stderr=out,
    )
    try:
      while not (metrics.exists() and metrics.stat().st_size):
        taken = time.perf_counter() - began
        if run.poll() is not None or taken > _TIMEOUT:
          output = log.read_text(encoding="utf-8").strip()
          sys.exit(
            f"error: {config}: no step in {taken:.0f} s: {output[-500:]}"
          )
        time.sleep(0.02)
      return time.perf_counter() - began
    finally:
      run.kill()
      run.wait()


def main(argv: Sequence[str] | None = None) -> int:
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.start",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--runs", required=True, type=pathlib.Path, help="a pipeline's workdir"
  )
  flags = parser.parse_args(argv)
  configs = [flags.runs / stage / "config.json" for stage in _STAGES]
  configs = [config for config in configs if config.exists()]
  if not configs:
    parser.error(f"{flags.runs} holds no stage with a config.json")
  for config in configs:
    with tempfile.TemporaryDirectory() as directory:
      at = pathlib.Path(directory)
      first, second = (
        seconds_to_first_step(config, at / name, at / "cache")
        for name in ("first", "second")
      )
    line = {
      "stage": config.parent.name,
      "first_start_s": round(first, 2),
      "second_start_s": round(second, 2),
    }
    print(json.dumps(line), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
