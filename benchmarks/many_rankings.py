"""Memory and start-up time of a reward model, by the number of rankings.

python -m benchmarks.many_rankings --thousands=20,1000 [--raw=20]
    [--directory=DIR]

For each number it writes synthetic pairs as JSON lines, prepares them, and
starts the training of a tiny reward model in a process of its own, which it
ends after the second step. It prints a row of a table for each run: peak
memory, and seconds to the end of the second step, or of the preparation. Runs
on the files themselves of `--raw` come first. All files are removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks import corpus
from benchmarks.corpus import Run
from instructgpt_jax import streams

_PROMPT_WORDS, _REPLY_WORDS = (4, 24), (2, 20)
_LIMITS = ("--data.max_prompt_tokens=64", "--data.max_response_tokens=64")
_RUN = (
  "--preset=tiny",
  "--model.num_layers=2",
  "--model.d_model=32",
  "--model.num_heads=2",
  "--model.max_seq_len=128",
  "--reward.normalize=false",
  "--run.log_every=1",
  "--run.save_every=0",
  "--run.tensorboard=false",
)


def write_rankings(path: pathlib.Path, count: int) -> None:
  """Writes pairs of random words."""
  rng = np.random.RandomState(0)
  make_text = corpus.text_maker(rng)
  with open(path, "w", encoding="utf-8") as file:
    for _ in range(count):
      record = {
        "prompt": make_text(rng.randint(*_PROMPT_WORDS)),
        "completions": [make_text(rng.randint(*_REPLY_WORDS)) for _ in "ab"],
        "ranks": [1, 2],
      }
      file.write(json.dumps(record) + "\n")


def prepare(
  source: pathlib.Path, directory: pathlib.Path, tokenizer: pathlib.Path
) -> Run:
  """Prepares rankings in a process of its own; returns its memory and time."""
  start = time.monotonic()
  process = _start(
    "instructgpt_jax.data",
    "prepare",
    "--preset=tiny",
    f"--data.comparisons={source}",
    f"--to={directory}",
    f"--tokenizer={tokenizer}",
    *_LIMITS,
  )
  peak = corpus.wait(process)
  return Run(peak, time.monotonic() - start)


def train(source: pathlib.Path, tokenizer: pathlib.Path) -> Run:
  """Runs two steps of a tiny reward model in a process of its own.

  Raises:
    RuntimeError: it failed.
  """
  with tempfile.TemporaryDirectory() as workdir:
    start = time.monotonic()
    process = _start(
      "experiments.reward",
      *_RUN,
      *_LIMITS,
      f"--data.comparisons={source}",
      f"--tokenizer.path={tokenizer}",
      f"--workdir={workdir}/run",
    )
    metrics = pathlib.Path(workdir) / "run" / "metrics.jsonl"
    peak = 0
    while process.poll() is None and corpus.count_lines(metrics) < 2:
      peak = max(peak, corpus.resident(process.pid))
      time.sleep(0.05)
    seconds = time.monotonic() - start
    if process.poll():
      raise RuntimeError(f"{' '.join(map(str, process.args))} failed")
    process.kill()
    process.wait()
  return Run(peak, seconds)


def _start(module: str, *flags: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", module, *flags],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def measure(
  directory: pathlib.Path, sizes: Sequence[int], raw: Sequence[int]
) -> Iterator[tuple[str, int, Run]]:
  """Yields (what, thousands, run) of all runs; files are removed."""
  tokenizer = corpus.prepare_tokenizer(directory)
  source, prepared = directory / "rankings.jsonl", directory / "prepared"
  write_rankings(source, 2000)
  train(source, tokenizer)  # Fills the cache of compiled programs.
  for thousands in sorted({*sizes, *raw}):
    write_rankings(source, 1000 * thousands)
    if thousands in raw:
      yield "files", thousands, train(source, tokenizer)
    if thousands in sizes:
      yield "preparation", thousands, prepare(source, prepared, tokenizer)
      yield "prepared", thousands, train(prepared, tokenizer)
      shutil.rmtree(prepared)


def main() -> None:
  """Prints the table."""
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--thousands", type=corpus.numbers, default=[20])
  parser.add_argument("--raw", type=corpus.numbers, default=[])
  parser.add_argument("--directory", help="where files are written")
  args = parser.parse_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  print("| run | rankings | peak memory, MB | seconds |")
  print("|---|---|---|---|")
  with tempfile.TemporaryDirectory(dir=args.directory) as directory:
    for what, thousands, run in measure(
      pathlib.Path(directory), args.thousands, args.raw
    ):
      print(
        f"| {what} | {thousands},000 | {run.peak / 1e6:,.0f} |"
        f" {run.seconds:.1f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
