"""Times lm-evaluation-harness with this project's model and with its own `hf`.

  python -m benchmarks.lm_eval --checkpoint=SMOLLM2 --data=EVALS
  python -m benchmarks.lm_eval --checkpoint=DIR --tiny

Both read one Hugging Face directory in float32, on the processor. They take
turns, each in a new process, and print one line of JSON for each task: seconds
from the first request to the last figure, compilation included, loading not.
The table after it has medians, and says whether the figures agree.

EVALS is described in instructgpt_jax/evaluation/lm_eval_tasks.py. Two tasks are
made of LAMBADA's texts: `lambada_rolling` scores whole texts, and
`lambada_generation` continues their first 32 words.
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
import time
from collections.abc import Sequence
from typing import Any

from instructgpt_jax.cli import launch
from instructgpt_jax.evaluation import lm_eval_tasks
from instructgpt_jax.runs import files

BACKENDS = ("ours", "hf")
MADE = {
  "lambada_rolling": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
  },
  "lambada_generation": {
    "output_type": "generate_until",
    "doc_to_text": "{{text.split(' ')[:32]|join(' ')}}",
    "doc_to_target": "{{' ' + text.split(' ')[32:]|join(' ')}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32},
    "metric_list": [{"metric": "exact_match"}],
  },
}
TASKS = (*lm_eval_tasks.SOURCES, *MADE)
_TOLERANCE = 1e-3  # of figures, relative
_WORDS = "the old fox saw one red bird near two barns and sang".split()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.lm_eval",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--checkpoint", required=True, help="Hugging Face directory")
  add("--data", default="", help="published files")
  add("--tasks", default=",".join(TASKS), help="names, with commas")
  add("--limit", type=int, default=0, help="first items of each; 0 is all")
  add("--rounds", type=int, default=1, help="runs of each backend")
  add("--batch_size", default="8", help="rows of `hf`; ours chooses")
  add("--tiny", action="store_true", help="a few items made here")
  add("--only", choices=BACKENDS, help=argparse.SUPPRESS)
  add("--written", default="", help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  flags.tasks = flags.tasks.split(",")
  for name in flags.tasks:
    if name not in TASKS:
      parser.error(f"--tasks: {name!r} is not one of {', '.join(TASKS)}")
  if not flags.tiny and not flags.data and not flags.written:
    parser.error("--data: name the directory of the published files")
  return flags


def write_tiny_files(path: pathlib.Path) -> None:
  """Writes four items of each task, as their publishers do."""
  texts = [" ".join(_WORDS[i:] + _WORDS) for i in range(4)]
  lines = {
    "hellaswag/hellaswag.jsonl": [
      json.dumps(
        {
          "activity_label": "Singing",
          "ctx_a": f"{text}.",
          "ctx_b": "it",
          "endings": _WORDS[1:5],
          "label": i,
        }
      )
      for i, text in enumerate(texts)
    ],
    "sst2/dev.tsv": [f"{text}\t{i % 2}" for i, text in enumerate(texts)],
    "lambada/lambada_test.jsonl": [json.dumps({"text": t}) for t in texts],
    "truthfulqa/TruthfulQA.csv": [
      "Question,Best Answer,Correct Answers,Incorrect Answers",
      *(f"{text}?,a fox,a fox,a bird; a barn" for text in texts),
    ],
  }
  for name, content in lines.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("\n".join(content) + "\n")


def write_all_tasks(data: str, out: pathlib.Path, limit: int) -> None:
  """Writes the tasks of published files, and those made of LAMBADA."""
  lm_eval_tasks.write_tasks(data, str(out), limit=limit)
  lambada = files.read_json(out / "lambada_openai.yaml")
  shared = {
    name: lambada[name]
    for name in ("dataset_path", "dataset_name", "dataset_kwargs")
  }
  for name, task in MADE.items():
    files.write_json_atomic(
      out / f"{name}.yaml", {"task": name, "test_split": "test"} | shared | task
    )


def load(backend: str, checkpoint: str, batch_size: str) -> Any:
  """Loads a model for the harness."""
  if backend == "ours":
    from instructgpt_jax.evaluation.lm_eval import Model

    return Model(checkpoint, dtype="float32")
  from lm_eval.models.huggingface import (  # pyright: ignore[reportMissingImports]
    HFLM,
  )

  return HFLM(
    pretrained=checkpoint,
    device="cpu",
    dtype="float32",
    batch_size=batch_size,
  )


def measure(flags: argparse.Namespace) -> None:
  """Prints the seconds and figures of each task with one backend."""
  from lm_eval import (  # pyright: ignore[reportMissingImports]
    simple_evaluate,
  )
  from lm_eval.tasks import (  # pyright: ignore[reportMissingImports]
    TaskManager,
  )

  model = load(flags.only, flags.checkpoint, flags.batch_size)
  manager = TaskManager(include_path=flags.written)
  for name in flags.tasks:
    start = time.perf_counter()
    results: Any = simple_evaluate(
      model=model,
      tasks=[name],
      task_manager=manager,
      bootstrap_iters=0,
      log_samples=False,
    )
    line = {
      "backend": flags.only,
      "task": name,
      "seconds": round(time.perf_counter() - start, 2),
      "items": results["n-samples"][name]["effective"],
      "figures": {
        key.removesuffix(",none"): value
        for key, value in results["results"][name].items()
        if isinstance(value, float) and "stderr" not in key
      },
    }
    print(json.dumps(line), flush=True)


def run_child(flags: argparse.Namespace, backend: str, written: str) -> Any:
  """Measures a backend in a new process; returns its lines."""
  done = subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.lm_eval", f"--only={backend}"),
      *(f"--checkpoint={flags.checkpoint}", f"--written={written}"),
      *(f"--tasks={','.join(flags.tasks)}", f"--batch_size={flags.batch_size}"),
    ],
    env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  lines = [x for x in done.stdout.splitlines() if x.startswith('{"backend"')]
  print("\n".join(lines), flush=True)
  return [json.loads(line) for line in lines]


def agree(ours: dict[str, float], theirs: dict[str, float]) -> bool:
  """Returns whether all figures are the same to a thousandth."""
  return ours.keys() == theirs.keys() and all(
    abs(ours[key] - theirs[key]) <= _TOLERANCE * max(1.0, abs(theirs[key]))
    for key in ours
  )


def table(lines: Sequence[dict[str, Any]]) -> str:
  """Returns a row for each task: seconds of both, and their figures."""
  rows = ["| task | items | ours, s | hf, s | speed-up | figures | agree |"]
  rows.append("|---|---|---|---|---|---|---|")
  for task in dict.fromkeys(line["task"] for line in lines):
    both = [
      [x for x in lines if (x["task"], x["backend"]) == (task, backend)]
      for backend in BACKENDS
    ]
    ours, theirs = (
      statistics.median(x["seconds"] for x in side) for side in both
    )
    figures = [side[0]["figures"] for side in both]
    text = ", ".join(f"{key} {value:.4f}" for key, value in figures[0].items())
    same = "yes" if agree(*figures) else f"no: {figures[1]}"
    rows.append(
      f"| {task} | {both[0][0]['items']} | {ours:.1f} | {theirs:.1f} |"
      f" {theirs / max(ours, 1e-9):.2f} | {text} | {same} |"
    )
  return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
  """Measures both backends in turn; returns the exit status."""
  return launch.run_with_errors(lambda: run(parse(argv)))


def run(flags: argparse.Namespace) -> None:
  """Measures both backends in turn, and prints a table."""
  if flags.only:
    measure(flags)
    return
  with tempfile.TemporaryDirectory() as directory:
    data, out = flags.data, pathlib.Path(directory) / "tasks"
    if flags.tiny:
      data = directory
      write_tiny_files(pathlib.Path(directory))
    write_all_tasks(data, out, flags.limit)
    lines = [
      line
      for _ in range(flags.rounds)
      for backend in BACKENDS
      for line in run_child(flags, backend, str(out))
    ]
  print(table(lines))


if __name__ == "__main__":
  sys.exit(main())
