"""Memory and start-up time of pretraining, by the size of the corpus.

python -m benchmarks.corpus --megabytes=50,200,1000 [--raw=50,200]
    [--copies=50] [--directory=DIR]

For each size it writes a synthetic corpus of JSON lines, prepares it, and
starts a tiny pretraining run in a process of its own. It prints a row of a
table for each run: peak memory, and seconds to the end of the second step, or
of the preparation with all its processes. Runs on the raw files of `--raw` come
first; they need 17 to 36 bytes of memory for each byte of text. `--copies=50`
also measures a prepared corpus that has the shards of the largest one 50 times,
as links: reading it costs what reading a corpus of 50 times the size does. All
files are removed afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from instructgpt_jax import streams
from instructgpt_jax.data.prepared import manifest

SAMPLE = "sample.jsonl"
_LENGTH = 128
_WORDS = 20_000
_DOCUMENT_WORDS = (20, 700)
_VOCAB_SIZE = 2048
_TOKENIZER_MEGABYTES = 5
_RUN = (
  "--preset=tiny",
  "--model.num_layers=2",
  "--model.d_model=32",
  "--model.num_heads=2",
  f"--model.max_seq_len={_LENGTH}",
  f"--pretrain.sequence={_LENGTH}",
  "--pretrain.steps=20",
  "--pretrain.batch_size=8",
  "--pretrain.eval_every=20",
  "--run.log_every=1",
  "--run.tensorboard=false",
  "--data.max_prompt_tokens=64",
  "--data.max_response_tokens=64",
)


class Run(NamedTuple):
  """A measured pretraining run.

  Attributes:
    peak: largest resident memory of the process and its children, in bytes.
    seconds: from its start to the end of the second step.
  """

  peak: int
  seconds: float


def text_maker(rng: np.random.RandomState) -> Callable[[int], str]:
  """Returns a function that writes a text of some random words."""
  letters = np.array(list("etaoinshrdlucmfwypvbgk"))
  vocabulary = np.array(
    ["".join(rng.choice(letters, n)) for n in rng.randint(2, 10, _WORDS)]
  )
  # Word frequencies by Zipf's law.
  weights = 1 / np.arange(1, _WORDS + 1)
  cumulative = np.cumsum(weights / weights.sum())

  def make(count: int) -> str:
    indices = np.searchsorted(cumulative, rng.random_sample(count))
    return " ".join(vocabulary[indices])

  return make


def write_corpus(path: pathlib.Path, size: int) -> None:
  """Writes documents of random words, about `size` bytes in all."""
  rng = np.random.RandomState(0)
  make_text = text_maker(rng)
  with open(path, "w", encoding="utf-8") as file:
    while file.tell() < size:
      text = make_text(rng.randint(*_DOCUMENT_WORDS))
      file.write(json.dumps({"text": text}) + "\n")


def prepare(corpus: pathlib.Path, directory: pathlib.Path, *flags: str) -> Run:
  """Prepares a corpus in a process of its own; returns its memory and time."""
  start = time.monotonic()
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "instructgpt_jax.data",
      "prepare",
      str(corpus),
      f"--to={directory}",
      f"--length={_LENGTH}",
      *flags,
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  peak = wait(process)
  return Run(peak, time.monotonic() - start)


def pretrain(source: pathlib.Path, tokenizer: pathlib.Path) -> Run:
  """Runs a few steps of a tiny pretraining in a process of its own."""
  with tempfile.TemporaryDirectory() as workdir:
    start = time.monotonic()
    process = subprocess.Popen(
      [
        sys.executable,
        "-m",
        "experiments.pretrain",
        *_RUN,
        f"--data.pretraining={source}",
        f"--tokenizer.path={tokenizer}",
        f"--workdir={workdir}/run",
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    metrics = pathlib.Path(workdir) / "run" / "metrics.jsonl"
    seconds = 0.0
    peak = 0
    while process.poll() is None:
      peak = max(peak, resident(process.pid))
      if not seconds and count_lines(metrics) >= 2:
        seconds = time.monotonic() - start
      time.sleep(0.05)
    peak = max(peak, wait(process))
  return Run(peak, seconds)


def count_lines(path: pathlib.Path) -> int:
  """Returns the number of lines of a file; 0 without one."""
  return path.read_bytes().count(b"\n") if path.exists() else 0


def wait(process: subprocess.Popen) -> int:
  """Waits for a process; returns its peak memory in bytes.

  Raises:
    RuntimeError: it failed.
  """
  peak = 0
  while process.poll() is None:
    peak = max(peak, resident(process.pid))
    time.sleep(0.05)
  if process.wait():
    raise RuntimeError(f"{' '.join(map(str, process.args))} failed")
  return peak


def resident(pid: int) -> int:
  """Returns the resident memory of a process and its children, in bytes."""
  directory = pathlib.Path(f"/proc/{pid}")
  try:
    lines = (directory / "status").read_text().splitlines()
    children = (directory / "task" / str(pid) / "children").read_text().split()
  except OSError:
    return 0  # It has ended.
  sizes = [1024 * int(x.split()[1]) for x in lines if x.startswith("VmRSS")]
  return sum(sizes) + sum(resident(int(child)) for child in children)


def multiply(directory: pathlib.Path, copies: int) -> None:
  """Gives a prepared corpus its shards several times, as links."""
  single = manifest.read(directory)
  shards = {
    length: {
      split: tuple(
        _link(directory, shard, i) for i in range(copies) for shard in of_split
      )
      for split, of_split in splits.items()
    }
    for length, splits in single.shards.items()
  }
  manifest.write(directory, dataclasses.replace(single, shards=shards))


def _link(
  directory: pathlib.Path, shard: manifest.Shard, number: int
) -> manifest.Shard:
  path = pathlib.Path(shard.file)
  name = path.with_name(f"copy{number}-{path.name}").as_posix()
  os.link(directory / shard.file, directory / name)
  return shard._replace(file=name)


def prepare_tokenizer(directory: pathlib.Path) -> pathlib.Path:
  """Trains a tokenizer on a small corpus, `SAMPLE`; returns its path."""
  sample, prepared = directory / SAMPLE, directory / "sample"
  write_corpus(sample, _TOKENIZER_MEGABYTES * 10**6)
  prepare(sample, prepared, f"--tokenizer.vocab_size={_VOCAB_SIZE}")
  return prepared / "tokenizer"


def measure(
  directory: pathlib.Path,
  sizes: Sequence[int],
  raw: Sequence[int],
  copies: Sequence[int],
) -> Iterator[tuple[str, int, Run]]:
  """Yields (what, megabytes, run) of all runs; corpora are removed."""
  tokenizer = prepare_tokenizer(directory)
  sample = directory / SAMPLE
  pretrain(sample, tokenizer)  # Fills the cache of compiled programs.
  for megabytes in sorted({*sizes, *raw}):
    corpus = directory / "corpus.jsonl"
    prepared = directory / "prepared"
    write_corpus(corpus, megabytes * 10**6)
    if megabytes in raw:
      yield "text", megabytes, pretrain(corpus, tokenizer)
    if megabytes in sizes:
      run = prepare(corpus, prepared, f"--tokenizer={tokenizer}")
      yield "preparation", megabytes, run
      corpus.unlink()
      yield "prepared", megabytes, pretrain(prepared, tokenizer)
    if copies and megabytes == max(sizes):
      for number in copies:
        several = directory / f"copies{number}"
        shutil.copytree(prepared, several, copy_function=os.link)
        multiply(several, number)
        run = pretrain(several, tokenizer)
        yield f"prepared, {number} copies", number * megabytes, run
    shutil.rmtree(prepared, ignore_errors=True)


def numbers(text: str) -> list[int]:
  """Returns the numbers of a comma list."""
  return [int(part) for part in text.split(",") if part]


def main() -> None:
  """Prints the table."""
  streams.accept_all_text()
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--megabytes", type=numbers, default=[50, 200])
  parser.add_argument("--raw", type=numbers, default=[])
  parser.add_argument("--copies", type=numbers, default=[])
  parser.add_argument("--directory", help="where corpora are written")
  args = parser.parse_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  print("| run | corpus, MB | peak memory, MB | seconds |")
  print("|---|---|---|---|")
  with tempfile.TemporaryDirectory(dir=args.directory) as directory:
    for what, megabytes, run in measure(
      pathlib.Path(directory), args.megabytes, args.raw, args.copies
    ):
      print(
        f"| {what} | {megabytes:,} | {run.peak / 1e6:,.0f} |"
        f" {run.seconds:.1f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
