"""Command of a judge: win rates of answers, agreement with labels."""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
from collections.abc import Sequence
from typing import Any

from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  judge_pairs,
  judge_report,
  judge_server,
  judge_statistics,
  pair_judges,
)
from instructgpt_jax.evaluation.judge_pairs import Pair, PairFile
from instructgpt_jax.evaluation.pair_judges import PairJudge, ScoringModel
from instructgpt_jax.evaluation.reply_log import ReplyLog
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress, log_line

REPORT, VERDICTS, PAGE = "judge.json", "verdicts.jsonl", "report.md"
REPLIES = "replies.jsonl"  # of the judge, until the report is complete
_ANSWERS = "answers"


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
  """Parses the command line.

  Raises:
    UserError: a flag is wrong, or two flags do not fit together.
  """
  parser = CommandParser(
    prog="python -m experiments.judge", description=description
  )
  add = parser.add_argument
  add("--judge", required=True, help="directory of a language model, or a URL")
  add("--answers", default="", help="answers of a model, JSON lines")
  add("--against", default="", help="answers of another model")
  sets = ", ".join(judge_pairs.SETS)
  add("--human", default="", help=f"labelled pairs: SET=PATH,…; sets: {sets}")
  add("--output", required=True, help="directory of the report")
  add("--overwrite", action="store_true", help="replace a report")
  add("--template", default="", help="file with another question")
  add(
    "--chat_template",
    choices=("auto", "true", "false"),
    default="auto",
    help="whether a local judge is asked in its chat template",
  )
  add("--limit", type=int, default=0, help="most pairs of a file; 0 is all")
  add("--seed", type=int, default=0, help="seed of --limit and of intervals")
  add(
    "--allow_unmatched",
    action="store_true",
    help="accept files in which less than half has a counterpart",
  )
  add("--judge_model", default="", help="name of the model behind a URL")
  add(
    "--judge_key_env", default="", help="environment variable with the API key"
  )
  add("--timeout", type=float, default=60.0, help="seconds of a request")
  add("--retries", type=int, default=4, help="further tries of a request")
  add("--parallel", type=int, default=4, help="requests at a time")
  add("--max_tokens", type=int, default=16, help="most tokens of a reply")
  arguments = parser.parse_args(argv)
  _check(arguments)
  return arguments


def _check(arguments: argparse.Namespace) -> None:
  """Refuses flags that are out of range or do not fit together."""
  if bool(arguments.answers) != bool(arguments.against):
    raise UserError(
      "is needed beside the other",
      field="--against" if arguments.answers else "--answers",
      fix="give the answers of two models, --answers=A --against=B",
      code="one_model",
    )
  if not arguments.answers and not arguments.human:
    raise UserError(
      "there is nothing to judge",
      field="--answers",
      fix="give --answers=A --against=B, or --human=SET=PATH",
      code="nothing_to_judge",
    )
  server = judge_server.is_url(arguments.judge)
  if server != bool(arguments.judge_model):
    raise UserError(
      "is needed for a URL" if server else "is for a URL only",
      field="--judge_model",
      fix="name a model of the server" if server else "leave it out",
      code="judge_model",
    )
  least = {"limit": 0, "retries": 0, "parallel": 1, "max_tokens": 1}
  for name, smallest in least.items():
    if getattr(arguments, name) < smallest:
      raise UserError(
        f"is {getattr(arguments, name)}",
        field=f"--{name}",
        fix=f"give {smallest} or more",
        code="not_allowed",
      )
  if not 0 < arguments.timeout < 1e6:
    raise UserError(
      f"is {arguments.timeout}",
      field="--timeout",
      fix="give a number of seconds above 0",
      code="not_allowed",
    )


def load_model(path: str) -> ScoringModel:
  """Loads the language model of a directory.

  Raises:
    UserError: it has none.
  """
  from instructgpt_jax.evaluation import language_model

  try:
    return language_model.TextModel(path)
  except UserError as error:
    raise UserError(
      error.problem,
      file=error.file,
      field="--judge",
      fix=error.fix,
      code=error.code,
    ) from error


def make_judge(
  arguments: argparse.Namespace, replies: ReplyLog | None = None
) -> PairJudge:
  """Makes the judge of the command line.

  Args:
    arguments: parsed flags.
    replies: replies of an earlier run, which are not asked for again; gets
      those of this run.
  """
  if judge_server.is_url(arguments.judge):
    return judge_server.ServerJudge(
      arguments.judge,
      arguments.judge_model,
      key_env=arguments.judge_key_env,
      timeout=arguments.timeout,
      retries=arguments.retries,
      parallel=arguments.parallel,
      max_tokens=arguments.max_tokens,
      replies=replies,
    )
  model = load_model(arguments.judge)
  has_template = model.tokenizer.template is not None
  if arguments.chat_template == "true" and not has_template:
    raise UserError(
      "its tokenizer has no chat template",
      file=arguments.judge,
      field="--chat_template",
      fix="give --chat_template=false",
      code="no_chat_template",
    )
  use_chat = has_template and arguments.chat_template != "false"
  judge = pair_judges.LikelihoodJudge(model, arguments.judge, use_chat=use_chat)
  if replies is None:
    return judge
  identity = f"{arguments.judge} {_fingerprint(arguments.judge)} {use_chat}"
  return pair_judges.ResumedJudge(judge, replies, identity)


def _fingerprint(path: str) -> str:
  """Returns the sizes and the newest time of a model's files."""
  root = pathlib.Path(path).expanduser()
  statuses = [
    file.stat()
    for file in (root.rglob("*") if root.is_dir() else [root])
    if file.is_file()
  ]
  newest = max((status.st_mtime_ns for status in statuses), default=0)
  return f"{sum(status.st_size for status in statuses)} {newest}"


def run(arguments: argparse.Namespace, judge: PairJudge | None = None) -> None:
  """Judges all pairs, and writes and prints the report.

  Replies of the judge are on disk until the report is. The same command resumes
  from them.

  Args:
    arguments: parsed flags.
    judge: the judge; that of the flags if None.

  Raises:
    UserError: a file or the judge cannot be used; or `few_verdicts`, more than
      half of the pairs of a file have no verdict.
  """
  output = pathlib.Path(arguments.output)
  for name in (REPORT, VERDICTS, PAGE):
    files.check_output(
      output / name, field="--output", overwrite=arguments.overwrite
    )
  template = pair_judges.TEMPLATE
  if arguments.template:
    template = pair_judges.read_template(arguments.template)
  pair_files = _read_pairs(arguments)
  replies = ReplyLog(output / REPLIES)
  if len(replies):
    log_line(f"resumes with {len(replies)} replies: {output / REPLIES}")
  judge = judge or make_judge(arguments, replies)
  report: dict[str, Any] = {"judge": judge.name, "template": template}
  left_out = [line for file in pair_files.values() for line in file.notes]
  warnings = [line for file in pair_files.values() for line in file.warnings]
  rows: list[dict[str, Any]] = []
  total = sum(len(file.pairs) for file in pair_files.values())
  with Progress(total, "judging", unit="pair", compiles=True) as progress:
    for name, (pairs, *_) in pair_files.items():
      judged = pair_judges.judge_pairs(judge, pairs, template, progress.update)
      problems = judge_report.count_problems(name, judged)
      verdicts, usable = judge_statistics.gather_verdicts(pairs, judged)
      _require_verdicts(name, len(usable), len(pairs), problems)
      left_out += problems
      if 10 * (len(pairs) - len(usable)) > len(pairs):
        warnings += problems
      rows += judge_report.verdict_rows(name, pairs, judged)
      if name == _ANSWERS:
        report |= {"answers": arguments.answers, "against": arguments.against}
        report["comparison"] = judge_statistics.summarize(
          verdicts, seed=arguments.seed
        )
      else:
        report.setdefault("human", {})[name] = _agreement(
          usable, verdicts, arguments.seed
        )
  report["left_out"] = left_out
  report["warnings"] = [*warnings, *judge_report.find_warnings(report)]
  _write(report, rows, output)
  replies.delete()


def _agreement(
  pairs: Sequence[Pair], verdicts: judge_statistics.Verdicts, seed: int
) -> dict[str, Any]:
  """Returns the figures of a set with labels, and who labelled it."""
  return {
    "labels_by": judge_report.describe_labelers(pairs),
    **judge_statistics.measure_agreement(pairs, verdicts, seed=seed),
  }


def _write(
  report: dict[str, Any], rows: Sequence[dict[str, Any]], output: pathlib.Path
) -> None:
  """Writes and prints the report."""
  page = judge_report.to_markdown(report)
  files.write_jsonl_atomic(output / VERDICTS, rows)
  files.write_text_atomic(output / PAGE, page)
  files.write_json_atomic(output / REPORT, report)
  sys.stdout.write(page)
  log_line(f"report: {output / PAGE}")


def _read_pairs(arguments: argparse.Namespace) -> dict[str, PairFile]:
  """Reads the pairs of all flags, by the name of their section."""
  pair_files: dict[str, PairFile] = {}
  if arguments.answers:
    pair_files[_ANSWERS] = judge_pairs.read_answer_pairs(
      arguments.answers,
      arguments.against,
      allow_unmatched=arguments.allow_unmatched,
    )
  pair_files |= judge_pairs.read_labeled_pairs(arguments.human)
  if not arguments.limit:
    return pair_files
  return {
    name: _draw(name, file, arguments.limit, arguments.seed)
    for name, file in pair_files.items()
  }


def _draw(name: str, file: PairFile, limit: int, seed: int) -> PairFile:
  """Draws at most `limit` pairs of a file, in its order."""
  total = len(file.pairs)
  if total <= limit:
    return file
  drawn = sorted(random.Random(seed).sample(range(total), limit))
  note = f"{name}: {limit} of {total} pairs drawn by --limit"
  return PairFile(
    [file.pairs[i] for i in drawn], [*file.notes, note], file.warnings
  )


def _require_verdicts(
  name: str, usable: int, total: int, problems: Sequence[str]
) -> None:
  """Refuses a file of whose pairs more than half have no verdict."""
  if usable and 2 * usable >= total:
    return
  raise UserError(
    f"{total - usable} of {total} pairs have no verdict"
    + "".join(f"\n  {line}" for line in problems),
    file=name,
    field="--judge",
    fix="give a judge that answers A, B or tie, with a context long enough, or"
    " another --template",
    code="few_verdicts",
  )
