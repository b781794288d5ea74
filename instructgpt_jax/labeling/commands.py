"""Collects labels from people: rankings, demonstrations and comparisons.

  python -m instructgpt_jax.labeling create --store=labels.db \\
    --rank=answers.jsonl
  python -m instructgpt_jax.labeling serve --store=labels.db
  python -m instructgpt_jax.labeling invite --store=labels.db --count=3
  python -m instructgpt_jax.labeling agreement --store=labels.db
  python -m instructgpt_jax.labeling export --store=labels.db --to=labels

`create` writes PROJECT.json and the store. `add` adds items to both. `serve`
opens the pages at http://127.0.0.1:8765, and brings the store up to --project
first. `example` makes a project with simulated labels and serves it. COMMAND
--help lists a command's flags; docs/labeling.md explains them.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import random
import signal
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

from instructgpt_jax.cli import launch
from instructgpt_jax.cli.listening import whole_number
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.errors import UserError

_PROGRAM = "python -m instructgpt_jax.labeling"
_URL = "http://127.0.0.1:8765"
_DAY = 86400.0
_MAX_INVITATIONS = 1000


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns:
    Exit status: 0; 2 after a user error; 130 after an interrupt.
  """
  interrupted = False

  def run() -> None:
    nonlocal interrupted
    flags = _parser().parse_args(argv)
    try:
      _check_packages()
      flags.run(flags)
    except KeyboardInterrupt:
      interrupted = True

  status = launch.run_with_errors(run)
  return launch.INTERRUPTED if interrupted else status


def _check_packages() -> None:
  from instructgpt_jax.labeling import server

  server.check_packages()


# Flags.


def _parser() -> argparse.ArgumentParser:
  parser = CommandParser(prog=_PROGRAM, description=__doc__)
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
  )

  def command(
    name: str, run: Callable[[argparse.Namespace], None], text: str
  ) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(run=run)
    return added

  create = command("create", _create, "Makes a project and its store.")
  _add_store(create)
  _add_content(create)
  create.add_argument(
    "--title", default="", help="title on the pages (default: Labeling)"
  )
  create.add_argument(
    "--overlap",
    type=whole_number(1, 1000),
    default=1,
    help="labelers of each item (default: 1)",
  )
  create.add_argument(
    "--instructions",
    default="",
    metavar="FILE",
    help="Markdown file with the instructions (default: a short text)",
  )
  add = command("add", _add, "Adds items to a project and its store.")
  _add_store(add)
  _add_content(add)
  serve = command("serve", _serve, "Serves the pages of a store.")
  _add_store(serve)
  serve.add_argument(
    "--project",
    default="",
    metavar="FILE",
    help="PROJECT.json that the store is brought up to; made if missing",
  )
  _add_address(serve)
  invite = command("invite", _invite, "Prints links that invite people.")
  _add_store(invite)
  _add_invitation(invite)
  export = command("export", _export, "Writes labels as training data.")
  _add_store(export)
  _add_export(export)
  agreement = command("agreement", _agreement, "Prints how labelers agree.")
  _add_store(agreement)
  example = command(
    "example", _example, "Serves an example with simulated labels."
  )
  example.add_argument(
    "--workdir",
    default="runs/labeling",
    metavar="DIR",
    help="directory of the example (default: runs/labeling)",
  )
  example.add_argument(
    "--demo",
    default="runs/demo",
    metavar="DIR",
    help="workdir of the demo, whose prompts are used (default: runs/demo)",
  )
  _add_address(example)
  return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--store",
    required=True,
    metavar="PATH",
    help="SQLite file, or postgresql://USER:PASSWORD@HOST/NAME",
  )


def _add_content(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--project",
    default="PROJECT.json",
    metavar="FILE",
    help="description of the project (default: PROJECT.json)",
  )
  for name, text in (
    ("rank", "prompts with answers to rank"),
    ("compare", "prompts with two answers each to compare"),
    ("demonstrate", "prompts to answer"),
    ("screen", "screening items for candidates"),
  ):
    add(f"--{name}", default="", metavar="FILE", help=text)
  add(
    "--write",
    type=whole_number(1, 100_000),
    default=0,
    metavar="N",
    help="number of prompts that labelers write and answer",
  )
  add(
    "--sample_from",
    default="",
    metavar="DIR,DIR",
    help="workdirs of stages that answer --prompts",
  )
  add("--prompts", default="", metavar="FILE", help="prompts to sample from")
  add(
    "--completions",
    type=whole_number(2, 16),
    default=4,
    help="answers to each prompt, over all stages (default: 4)",
  )
  add(
    "--num_prompts",
    type=whole_number(1, 10**6),
    default=500,
    help="prompts that are answered at most (default: 500)",
  )
  add(
    "--task",
    choices=("ranking", "comparison"),
    default="ranking",
    help="what sampled answers are for; comparison pairs the answers of"
    " different stages (default: ranking)",
  )
  add(
    "--answers",
    default="",
    metavar="FILE",
    help="file that receives sampled answers (default: answers.jsonl beside"
    " the project)",
  )
  add(
    "--temperature",
    type=_temperature,
    default=1.0,
    help="temperature of sampling (default: 1)",
  )
  add(
    "--max_tokens",
    type=whole_number(0, 10**6),
    default=0,
    help="longest answer (default: the limit of each stage)",
  )
  add(
    "--seed",
    type=whole_number(0, 2**31 - 1),
    default=0,
    help="seed of prompts, answers and their order (default: 0)",
  )


def _add_address(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--host",
    default="127.0.0.1",
    help="address to listen on (default: 127.0.0.1)",
  )
  add(
    "--port",
    type=whole_number(0, 65535),
    default=8765,
    help="port to listen on; 0 chooses a free one (default: 8765)",
  )
  add(
    "--names",
    default="",
    metavar="NAME,NAME",
    help="further host names under which browsers open the server",
  )
  add(
    "--https",
    action="store_true",
    help="browsers reach the server through a proxy that ends https",
  )
  add(
    "--tokenizer",
    default="",
    metavar="PATH",
    help="tokenizer, or a stage's workdir, that counts tokens as one writes",
  )
  add("--open", action="store_true", help="open the address in a browser")


def _add_invitation(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--role",
    choices=("owner", "reviewer", "labeler", "candidate"),
    default="labeler",
    help="role of the people (default: labeler)",
  )
  add(
    "--count",
    type=whole_number(1, _MAX_INVITATIONS),
    default=1,
    help="number of links; each is for one person (default: 1)",
  )
  add(
    "--held_out",
    action="store_true",
    help="their labels never reach a training file",
  )
  add(
    "--days",
    type=whole_number(1, 365),
    default=14,
    help="days for which a link can be used (default: 14)",
  )
  add("--note", default="", help="note in the owner's list of invitations")
  add(
    "--url",
    default=_URL,
    help=f"address of the server in the links (default: {_URL})",
  )


def _add_export(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--to", required=True, metavar="DIR", help="directory of the files")
  add(
    "--format",
    choices=("jsonl", "parquet"),
    default="jsonl",
    help="format of the files (default: jsonl)",
  )
  for name, text in (("valid", "validation"), ("test", "tests")):
    add(
      f"--{name}_fraction",
      type=_fraction,
      default=None,
      help=f"share of users, or prompts, for {text} (default: as"
      f" --data.{name}_fraction)",
    )
  add(
    "--keep_personal",
    action="store_true",
    help="keep records with personal information",
  )
  add(
    "--adjudicated",
    choices=("replace", "keep"),
    default="replace",
    help="whether the final label of an item replaces the labelers' own"
    " (default: replace)",
  )


def _temperature(text: str) -> float:
  return _number(text, 10.0)


def _fraction(text: str) -> float:
  return _number(text, 1.0)


def _number(text: str, most: float) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value <= most:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a number from 0 to {most:g}"
    )
  return value


# Commands.


def _create(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import example, project
  from instructgpt_jax.runs import files

  path = pathlib.Path(flags.project)
  if _has_content(flags):
    _check_output(
      path,
      "--project",
      f"choose another file, or add items with {_PROGRAM} add",
    )
    _check_store(flags.store)
    entries = _new_entries(flags, path)
    instructions = path.parent / "instructions.md"
    if flags.instructions:
      instructions = pathlib.Path(flags.instructions)
    elif not instructions.exists():
      files.write_text_atomic(instructions, example.default_instructions())
    settings = project.Settings(
      title=flags.title.strip() or project.Settings().title,
      overlap=flags.overlap,
    )
    files.write_json_atomic(
      path,
      project.as_json(settings, entries, _relative(instructions, path)),
    )
    print(f"wrote {path}")
  elif not path.exists():
    raise UserError(
      "the project has no items, and there is no such file",
      file=str(path),
      field="--project",
      fix="name a file with --rank, --compare, --demonstrate or --screen, or"
      " sample answers with --prompts and --sample_from",
      code="no_items",
    )
  store = _update(flags.store, str(path), create=True)
  try:
    _print_owner_link(store, _URL)
  finally:
    store.close()
  print(f"next: {_PROGRAM} serve --store={flags.store} --project={path}")


def _check_output(path: pathlib.Path, field: str, fix: str) -> None:
  """Refuses an output that exists, or that could not be written later."""
  from instructgpt_jax.runs import files

  if path.exists():
    raise UserError(
      "exists already",
      file=str(path),
      field=field,
      fix=fix,
      code="output_exists",
    )
  files.check_output(path, field=field, overwrite=True)


def _check_store(location: str) -> None:
  """Refuses a store that could not be made or opened later."""
  from instructgpt_jax.labeling import store as store_lib

  try:
    store_lib.open_store(location).close()
  except UserError as error:
    if error.code != "no_store":
      raise


def _add(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import project
  from instructgpt_jax.labeling import store as store_lib
  from instructgpt_jax.runs import files

  if not _has_content(flags):
    raise UserError(
      "nothing to add",
      fix="name a file with --rank, --compare, --demonstrate or --screen, or"
      " sample answers with --prompts and --sample_from",
      code="no_items",
    )
  path = pathlib.Path(flags.project)
  project.read_project(str(path))
  store_lib.open_store(flags.store).close()
  value = files.read_json(path)
  value["items"] += _new_entries(flags, path)
  files.write_json_atomic(path, value)
  _update(flags.store, str(path), create=False).close()


def _has_content(flags: argparse.Namespace) -> bool:
  names = ("rank", "compare", "demonstrate", "screen", "write", "sample_from",
           "prompts")  # fmt: skip
  return any(getattr(flags, name) for name in names)


def _new_entries(
  flags: argparse.Namespace, path: pathlib.Path
) -> list[dict[str, Any]]:
  """Returns the entries of PROJECT.json that the flags name.

  All files are read first, so that an error leaves nothing behind.
  """
  from instructgpt_jax.labeling import item_files

  entries: list[dict[str, Any]] = []
  for task, name in (
    ("ranking", flags.rank),
    ("comparison", flags.compare),
    ("demonstration", flags.demonstrate),
    ("screening", flags.screen),
  ):
    if name:
      item_files.read(task, name, 1)
      entries.append({"task": task, "file": _relative(name, path)})
  if flags.write:
    entries.append({"task": "demonstration", "count": flags.write})
  if bool(flags.sample_from) != bool(flags.prompts):
    missing = "--prompts" if flags.sample_from else "--sample_from"
    raise UserError(
      "answers are sampled from stages, for prompts",
      field=missing,
      fix=f"add {missing}",
      code="missing_flag",
    )
  if flags.sample_from:
    answers = _sample(flags, path)
    entries.append({"task": flags.task, "file": _relative(answers, path)})
  return entries


def _relative(name: str | pathlib.Path, project: pathlib.Path) -> str:
  return os.path.relpath(name, project.parent)


def _sample(flags: argparse.Namespace, project: pathlib.Path) -> pathlib.Path:
  """Samples answers into a file, and returns its path."""
  from instructgpt_jax.data import reading
  from instructgpt_jax.labeling import sampling
  from instructgpt_jax.runs import files
  from instructgpt_jax.runs.progress import Progress

  stages = [s.strip().rstrip("/") for s in flags.sample_from.split(",")]
  stages = [stage for stage in stages if stage]
  sampling.shares(flags.completions, len(stages))
  if flags.task == "comparison" and len(stages) < 2:
    raise UserError(
      "comparisons are of answers of two or more stages",
      field="--sample_from",
      fix="name another stage, or use --task=ranking",
      code="one_stage",
    )
  path = pathlib.Path(flags.answers or project.parent / "answers.jsonl")
  _check_output(path, "--answers", "name another file with --answers")
  records, _ = reading.read_prompts(flags.prompts)
  prompts = list({record.turns: record for record in records}.values())
  rng = random.Random(f"prompts {flags.seed}")
  prompts = rng.sample(prompts, min(flags.num_prompts, len(prompts)))

  def load(stage: str) -> Any:
    from instructgpt_jax.chat import engine  # Imports JAX, unlike --help.

    return engine.load_session(
      stage,
      engine.SamplingOptions(
        max_tokens=flags.max_tokens,
        temperature=flags.temperature,
        seed=flags.seed + stages.index(stage),
      ),
    )

  with Progress(
    len(prompts) * flags.completions, "answers", unit="answer", compiles=True
  ) as progress:
    sampled = sampling.sample_answers(
      prompts,
      stages,
      load,
      completions=flags.completions,
      seed=flags.seed,
      progress=progress,
    )
  rows = sampled.records
  if flags.task == "comparison":
    rows = sampling.pair_records(rows)
  files.write_jsonl_atomic(path, rows)
  print(
    f"wrote {path}: {len(rows)} records; {sampled.too_long} prompts are too"
    f" long, and {sampled.equal} have no two different answers"
  )
  return path


def _update(location: str, path: str, *, create: bool) -> Any:
  """Opens a store and brings it up to a project."""
  from instructgpt_jax.labeling import project
  from instructgpt_jax.labeling import store as store_lib

  description = project.read_project(path)
  items, remarks = project.read_items(description)
  store = store_lib.open_store(location, create=create)
  try:
    changes = project.update_store(store, description, items, time.time())
  except BaseException:
    store.close()
    raise
  for remark in remarks:
    print(remark)
  print(f"{store.name}: {changes.added} of {changes.total} items are new")
  if changes.overlaps:
    print(f"{changes.overlaps} items have another overlap")
  if changes.others:
    print(
      f"{changes.others} items of the store are in no file of {path}; they stay"
    )
  if changes.is_new_version:
    print(f"the instructions have version {changes.instructions}")
  return store


def _print_owner_link(store: Any, url: str) -> None:
  """Prints an invitation of an owner, unless the store has one."""
  from instructgpt_jax.labeling import people

  owners = [u for u in people.list_users(store) if u.role == "owner"]
  if not owners:
    token = people.invite(store, "owner", time.time(), note="command line")
    print(f"owner: {url}/invitation#{token}", flush=True)


def _serve(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import store as store_lib

  address = _address(flags)
  if flags.project:
    store = _update(flags.store, flags.project, create=True)
  else:
    store = store_lib.open_store(flags.store)
  try:
    _run_server(store, address, flags, ())
  finally:
    store.close()


def _address(flags: argparse.Namespace) -> Any:
  from instructgpt_jax.labeling import server

  names = tuple(n.strip() for n in flags.names.split(",") if n.strip())
  address = server.Address(
    host=flags.host, port=flags.port, names=names, https=flags.https
  )
  address.hosts()  # Refuses a wildcard without names.
  if address.is_exposed():
    print(
      "warning: passwords travel in plain text; put a proxy with https in"
      " front, and add --https (docs/labeling.md)",
      file=sys.stderr,
    )
  return address


def _run_server(
  store: Any, address: Any, flags: argparse.Namespace, guests: Sequence[str]
) -> None:
  """Serves; prints the owner's link, and links for guests, once it answers."""
  from instructgpt_jax.labeling import people, server

  def on_ready(url: str) -> None:
    if address.names:
      scheme = "https" if address.https else "http"
      url = f"{scheme}://{address.names[0]}"
    if "owner" not in guests:
      _print_owner_link(store, url)
    links = [url]
    for role in guests:
      token = people.invite(store, role, time.time(), note="example")
      links.append(f"{url}/invitation#{token}")
      print(f"{role}: {links[-1]}", flush=True)
    if flags.open and _has_display():
      webbrowser.open(links[-1])

  # uvicorn ends its work at SIGTERM, and then raises the signal again.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  server.serve(
    store,
    address,
    count_tokens=_token_counter(flags.tokenizer),
    on_ready=on_ready,
  )


def _token_counter(path: str) -> Callable[[str], int] | None:
  """Returns what counts the tokens of a text; None without a tokenizer."""
  if not path:
    return None
  from instructgpt_jax.data import tokenizers

  tokenizer = tokenizers.load_tokenizer(path)
  return lambda text: len(tokenizer.encode(text))


def _has_display() -> bool:
  """Returns whether a browser opens a window, not in this terminal."""
  names = ("DISPLAY", "WAYLAND_DISPLAY")
  return (
    sys.platform == "darwin"
    or os.name == "nt"
    or any(os.environ.get(name) for name in names)
  )


def _invite(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import people
  from instructgpt_jax.labeling import store as store_lib

  store = store_lib.open_store(flags.store)
  try:
    for _ in range(flags.count):
      token = people.invite(
        store,
        flags.role,
        time.time(),
        held_out=flags.held_out,
        note=flags.note,
        seconds=flags.days * _DAY,
      )
      print(f"{flags.url.rstrip('/')}/invitation#{token}")
  finally:
    store.close()


def _export(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import export, export_files

  fractions = {
    name: getattr(flags, name)
    for name in ("valid_fraction", "test_fraction")
    if getattr(flags, name) is not None
  }
  settings = export.ExportSettings(
    filter_personal=not flags.keep_personal,
    adjudicated=flags.adjudicated,
    **fractions,
  )
  if settings.valid_fraction + settings.test_fraction >= 1:
    raise UserError(
      "the shares of validation and tests leave nothing for training",
      field="--valid_fraction",
      fix="use smaller shares",
      code="fractions",
    )
  result = export.export_snapshot(_read_snapshot(flags.store), settings)
  export_files.write_export(result, flags.to, flags.format)
  print("\n".join([f"{flags.to}:", *export.summary_lines(result)]))


def _read_snapshot(location: str) -> Any:
  from instructgpt_jax.labeling import snapshot
  from instructgpt_jax.labeling import store as store_lib

  store = store_lib.open_store(location)
  try:
    with store.read() as connection:
      return snapshot.read_snapshot(connection)
  finally:
    store.close()


def _agreement(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import quality_text, snapshot

  records = snapshot.records_of(_read_snapshot(flags.store))
  print("\n".join(quality_text.lines(records)))


def _example(flags: argparse.Namespace) -> None:
  from instructgpt_jax.labeling import example

  address = _address(flags)
  example.check_directory(flags.workdir)
  root = pathlib.Path(flags.workdir)
  path, world = example.write_example(flags.workdir, flags.demo)
  is_new = not (root / example.STORE).exists()
  store = _update(str(root / example.STORE), path, create=True)
  try:
    if is_new:
      count = example.add_labels(store, world, time.time())
      print(f"simulated labelers submitted {count} labels")
    _run_server(store, address, flags, ("owner", "labeler"))
  finally:
    store.close()
