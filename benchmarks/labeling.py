"""Labels by simulated labelers over HTTP: correct under kills, and fast.

  python -m benchmarks.labeling accept --labelers=20 --prompts=500 --kills=2
  python -m benchmarks.labeling load --labelers=100 --seconds=60

`accept` starts the server, lets labelers of the world rank all prompts at once,
and kills the server with SIGKILL on the way. It then compares the store, the
export and the dashboard with the labelers' own records and with rankings that
are written without a server; `--train` also trains a small reward model on both
files. `load` measures the time of each request, and the server's memory, while
labelers save drafts and submit. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from instructgpt_jax import configs, streams
from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import people, project, schema, simulated
from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.runs import files
from instructgpt_jax.world import replies, write
from instructgpt_jax.world.facts import World, make_world

_ROOT = pathlib.Path(__file__).parent.parent
_START_SECONDS = 600.0
_PASSWORD = "a long password of "
_TILE = re.compile(
  r'Agreement</span><span class="value">([\d.]+)(?: ± ([\d.]+))? %</span>'
  r'<span class="small muted">([\d,]+) pairs, ([\d,]+) ties'
)
_DRAFTS = 3
_MANY = 200  # prompts from which the agreement is known to about 1 %
_PAPER = 69.0, 76.0


class Failed(Exception):
  """A check that does not hold."""


def check(holds: bool, text: str) -> None:
  """Prints a check that holds, and raises for one that does not."""
  if not holds:
    raise Failed(text)
  print(f"ok: {text}", flush=True)


# Prompts and labelers.


def draw_answers(
  world: World, prompts: int, completions: int, seed: int = 0
) -> list[dict[str, Any]]:
  """Returns prompts of the world, each with different answers of its people."""
  rng = random.Random(f"benchmark answers {seed}")
  records = []
  for request, text in write.draw_prompts(world, "train", 8 * prompts, seed):
    answers: dict[str, str] = {}
    for _ in range(20 * completions):
      if len(answers) < completions:
        persona = replies.draw_persona(replies.FORUM, rng)
        answers.setdefault(replies.reply(request, persona, rng), persona)
    if len(answers) == completions:
      records.append(
        {
          "prompt": text,
          "completions": list(answers),
          "sources": list(answers.values()),
          "kind": request.family,
          "split": "valid" if len(records) % 10 == 9 else "train",
        }
      )
    if len(records) == prompts:
      return records
  raise UserError(
    f"the world has {len(records)} prompts with {completions} different"
    f" answers, not {prompts}",
    field="--prompts",
    fix="use fewer prompts or completions",
    code="too_few_prompts",
  )


@dataclasses.dataclass
class Site:
  """A store with invited labelers.

  Attributes:
    directory: directory of all files.
    world: world of the prompts.
    answers: prompts with answers, in the order of items.
    crew: labelers, in the order of their user ids.
    tokens: invitation of each labeler.
    owner: invitation of the owner.
  """

  directory: pathlib.Path
  world: World
  answers: list[dict[str, Any]]
  crew: list[simulated.Persona]
  tokens: list[str]
  owner: str

  @property
  def store(self) -> str:
    """Path of the store."""
    return str(self.directory / "labels.db")


def make_site(
  directory: pathlib.Path,
  *,
  labelers: int,
  prompts: int,
  completions: int,
  overlap: int,
  lock_seconds: float = 1800.0,
) -> Site:
  """Makes a project with prompts of the world, and its store."""
  world = make_world(0)
  answers = draw_answers(world, prompts, completions)
  files.write_jsonl_atomic(directory / "answers.jsonl", answers)
  path = directory / "PROJECT.json"
  files.write_json_atomic(
    path,
    project.as_json(
      project.Settings(
        title="Benchmark", overlap=overlap, lock_seconds=lock_seconds
      ),
      [{"task": "ranking", "file": "answers.jsonl"}],
      "",
    ),
  )
  description = project.read_project(str(path))
  items, _ = project.read_items(description)
  store = store_lib.open_store(directory / "labels.db", create=True)
  try:
    now = time.time()
    project.update_store(store, description, items, now)
    crew = [persona for persona, _ in simulated.personas(labelers)]
    return Site(
      directory,
      world,
      answers,
      crew,
      [people.invite(store, "labeler", now) for _ in crew],
      people.invite(store, "owner", now),
    )
  finally:
    store.close()


# The server.


class Server:
  """The server in a process of its own, which can be killed and restarted.

  Attributes:
    port: port on which it listens, also after a restart.
    kills: number of kills so far.
  """

  def __init__(self, store: str):
    """Starts the server of a store, and waits until it answers."""
    self._store = store
    self.port = 0
    self.kills = 0
    self._start()

  def _start(self) -> None:
    command = [sys.executable, "-m", "instructgpt_jax.labeling", "serve"]
    command += [f"--store={self._store}", f"--port={self.port}"]
    self._process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      cwd=_ROOT,
    )  # fmt: skip
    assert self._process.stdout is not None
    output = []
    for line in self._process.stdout:
      output.append(line)
      match = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
      if match:
        self.port = int(match[1])
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        return
    self._process.stdout.close()
    raise UserError(
      "the server did not start: " + "".join(output)[-500:],
      fix="start it by hand",
      code="no_server",
    )

  def _drain(self) -> None:
    """Reads what the server prints, so that it never waits for a reader."""
    assert self._process.stdout is not None
    with self._process.stdout as lines:
      for line in lines:
        print(f"server: {line}", end="", file=sys.stderr)

  def kill(self) -> None:
    """Kills the server at once, and starts it again."""
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()
    self._reader.join()
    self.kills += 1
    self._start()

  def stop(self) -> None:
    """Ends the server as Ctrl-C does."""
    self._process.send_signal(signal.SIGINT)
    try:
      self._process.wait(60)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._reader.join()

  def memory(self) -> float:
    """Returns the resident memory of the process, in MiB."""
    status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else math.nan

  def cpu_seconds(self) -> float:
    """Returns the CPU time of the process so far."""
    stat = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def join_all(
  site: Site, port: int
) -> list[tuple[simulated.Client, simulated.Persona]]:
  """Lets all labelers accept their invitations, in order."""
  result = []
  for persona, token in zip(site.crew, site.tokens, strict=True):
    client = simulated.Client("127.0.0.1", port, patience=_START_SECONDS)
    client.accept_invitation(token, persona.name, _PASSWORD + persona.name)
    result.append((client, persona))
  return result


class Work:
  """Labelers who work at once, each in a thread."""

  def __init__(
    self,
    crew: Sequence[tuple[simulated.Client, simulated.Persona]],
    body: Callable[[simulated.Client, simulated.Persona], Any],
  ):
    """Starts a thread for each labeler that runs `body`."""
    self._errors: list[BaseException] = []

    def run(client: simulated.Client, persona: simulated.Persona) -> None:
      try:
        body(client, persona)
      except BaseException as error:
        self._errors.append(error)
      finally:
        client.close()

    self._threads = [threading.Thread(target=run, args=pair) for pair in crew]
    for thread in self._threads:
      thread.start()

  def is_running(self) -> bool:
    """Returns whether a labeler still works."""
    return any(thread.is_alive() for thread in self._threads)

  def wait(self) -> None:
    """Waits for all labelers, and raises the first error of one."""
    for thread in self._threads:
      thread.join()
    if self._errors:
      raise self._errors[0]


# Acceptance.


def accept(
  directory: pathlib.Path,
  *,
  labelers: int,
  prompts: int,
  completions: int,
  overlap: int,
  kills: int,
  train: bool = False,
) -> dict[str, Any]:
  """Runs the acceptance test; returns its figures.

  Raises:
    Failed: a check does not hold.
  """
  site = make_site(
    directory,
    labelers=labelers,
    prompts=prompts,
    completions=completions,
    overlap=overlap,
  )
  total = prompts * overlap
  server = Server(site.store)
  done: list[simulated.Acknowledged] = []
  began = time.monotonic()
  try:
    crew = join_all(site, server.port)
    lock = threading.Lock()

    def label(client: simulated.Client, persona: simulated.Persona) -> None:
      for one in simulated.work_items(client, persona, site.world):
        with lock:
          done.append(one)

    work = Work(crew, label)
    for number in range(kills):
      target = total * (number + 1) // (kills + 1)
      while len(done) < target and work.is_running():
        time.sleep(0.005)
      server.kill()
    work.wait()
    seconds = time.monotonic() - began
    tile = read_tile(site, server.port)
  finally:
    server.stop()
  check(server.kills == kills, f"the server was killed {kills} times")
  check_store(site, done, total, overlap)
  check_export(site, done)
  figures = check_agreement(done, tile)
  if prompts >= _MANY:
    low, high = _PAPER
    check(
      low < figures["agreement"] < high,
      f"the agreement is about the paper's 72.6 %, from {low} to {high} %",
    )
  if train:
    check_training(directory)
  retries = sum(client.retries for client, _ in crew)
  return {
    "labels": len(done), "seconds": round(seconds, 1), "retries": retries,
    **figures,
  }  # fmt: skip


def read_tile(site: Site, port: int) -> tuple[float, float, int, int]:
  """Returns what the owner's dashboard shows: percent, error, pairs, ties."""
  client = simulated.Client("127.0.0.1", port)
  client.accept_invitation(site.owner, "owner", _PASSWORD + "owner")
  match = _TILE.search(client.page("/dashboard?task=ranking"))
  client.close()
  if match is None:
    raise Failed("the dashboard shows no agreement")
  share, error, pairs, ties = match.groups()
  return (
    float(share),
    float(error or "nan"),
    int(pairs.replace(",", "")),
    int(ties.replace(",", "")),
  )


def check_store(
  site: Site,
  done: Sequence[simulated.Acknowledged],
  total: int,
  overlap: int,
) -> None:
  """Compares the store with what the server has acknowledged."""
  check(len(done) == total, f"{total} labels were acknowledged")
  check(
    len({(d.labeler, d.prompt) for d in done}) == total,
    "no labeler had an item twice",
  )
  store = store_lib.open_store(site.store)
  try:
    with store.read() as connection:
      labels = connection.execute(sa.select(schema.labels)).all()
      history = connection.execute(
        sa.select(sa.func.count()).select_from(schema.label_history)
      ).scalar()
      items = connection.execute(sa.select(schema.items)).all()
      names = {
        row.id: row.name for row in connection.execute(sa.select(schema.users))
      }
  finally:
    store.close()
  check(len(labels) == total, f"the store has {total} labels")
  check(history == total, "each label was submitted once")
  counts = collections.Counter(label.item_id for label in labels)
  check(
    set(counts.values()) == {overlap} and len(counts) == len(items),
    f"each item has exactly {overlap} labels",
  )
  payloads = {item.id: item.payload for item in items}
  by_assignment = {d.assignment: d for d in done}
  for label in labels:
    one = by_assignment[label.assignment_id]
    payload = payloads[label.item_id]
    ranks = dict(zip(one.completions, one.content["ranks"], strict=True))
    check_equal(names[label.user_id], one.labeler, label.assignment_id)
    check_equal(
      label.content["ranks"],
      [ranks[text] for text in payload["completions"]],
      label.assignment_id,
    )
  check(True, "each label is what its labeler submitted")


def check_equal(left: Any, right: Any, what: object) -> None:
  """Raises if two values differ."""
  if left != right:
    raise Failed(f"{what}: {left!r} is not {right!r}")


def direct_records(
  site: Site, done: Sequence[simulated.Acknowledged]
) -> Iterator[dict[str, Any]]:
  """Yields rankings as `pipeline.rankings` writes them, without a server.

  Who labeled what is known from the labelers; their decisions are made again,
  in the order in which the project has the answers.
  """
  who = collections.defaultdict(set)
  for one in done:
    who[one.prompt].add(one.labeler)
  for answer in site.answers:
    for number, persona in enumerate(site.crew, 1):
      if persona.name not in who[answer["prompt"]]:
        continue
      content = persona.rank(
        site.world, answer["prompt"], answer["completions"]
      )
      if len(set(content["ranks"])) > 1:
        yield {
          "prompt": [{"role": "user", "content": answer["prompt"]}],
          "completions": answer["completions"],
          "ranks": content["ranks"],
          "split": answer["split"],
          "labeler_id": str(number),
        }


def check_export(site: Site, done: Sequence[simulated.Acknowledged]) -> None:
  """Compares the export with rankings that are written directly."""
  direct, out = site.directory / "direct.jsonl", site.directory / "out"
  files.write_jsonl_atomic(direct, direct_records(site, done))
  subprocess.run(
    [sys.executable, "-m", "instructgpt_jax.labeling", "export"]
    + [f"--store={site.store}", f"--to={out}", "--keep_personal"],
    check=True,
    cwd=_ROOT,
    stdout=subprocess.DEVNULL,
  )
  exported, report = reading.read_rankings(str(out / "rankings.jsonl"))
  expected, _ = reading.read_rankings(str(direct))
  check(not report.unused and not report.skipped, "all of the export is read")

  def values(record: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(record), "origin": ""}

  check(
    list(map(values, exported)) == list(map(values, expected)),
    f"{len(expected)} exported rankings equal those written directly",
  )


def agreement_by_hand(
  done: Sequence[simulated.Acknowledged],
) -> tuple[float, float, int, int]:
  """Computes percent, standard error, pairs and ties from the labelers' own.

  It counts pair by pair, and shares no code with `labeling.quality`.
  """
  labels = collections.defaultdict(list)
  for one in done:
    labels[one.prompt].append(
      dict(zip(one.completions, one.content["ranks"], strict=True))
    )
  counts, ties = [], 0
  for group in labels.values():
    alike = ordered = 0
    for first, second in itertools.combinations(group, 2):
      for x, y in itertools.combinations(sorted(first), 2):
        if first[x] == first[y] or second[x] == second[y]:
          ties += 1
        else:
          ordered += 1
          alike += (first[x] < first[y]) == (second[x] < second[y])
    counts.append((alike, ordered))
  pairs = sum(n for _, n in counts)
  share = sum(a for a, _ in counts) / pairs
  used = sum(n > 0 for _, n in counts)
  squares = sum((a - share * n) ** 2 for a, n in counts)
  error = math.sqrt(squares * used / max(used - 1, 1)) / pairs
  return 100 * share, 100 * error, pairs, ties


def check_agreement(
  done: Sequence[simulated.Acknowledged], tile: tuple[float, float, int, int]
) -> dict[str, Any]:
  """Compares the dashboard with the computation by hand."""
  share, error, pairs, ties = agreement_by_hand(done)
  check(tile[2:] == (pairs, ties), f"the dashboard has {pairs} pairs")
  check(
    f"{share:.1f} {error:.1f}" == f"{tile[0]:.1f} {tile[1]:.1f}",
    f"the dashboard's agreement is {share:.1f} ± {error:.1f} %, as by hand",
  )
  return {"agreement": round(share, 2), "standard_error": round(error, 2)}


def check_training(directory: pathlib.Path) -> None:
  """Trains a reward model on both files, and compares their weights."""
  documents = directory / "documents.jsonl"
  rows = files.read_text(directory / "answers.jsonl").splitlines()
  files.write_jsonl_atomic(
    documents,
    (
      {"text": " ".join([row["prompt"], *row["completions"]])}
      for row in map(json.loads, rows)
    ),
  )
  base = directory / "base"
  _run_stage(
    "pretrain", base, f"--data.pretraining={documents}", "--pretrain.steps=20"
  )
  weights = []
  for name in ("out/rankings.jsonl", "direct.jsonl"):
    workdir = directory / f"reward_{len(weights)}"
    _run_stage(
      "reward",
      workdir,
      f"--init_from={base}",
      f"--data.comparisons={directory / name}",
    )
    weights.append(read_model(str(workdir)))
  check(
    weights[0] == weights[1], "the reward model equals the direct one in bits"
  )


def _run_stage(stage: str, workdir: pathlib.Path, *arguments: str) -> None:
  subprocess.run(
    [sys.executable, "-m", f"experiments.{stage}", "--preset=tiny"]
    + [f"--workdir={workdir}", "--run.tensorboard=false", *arguments],
    check=True,
    cwd=_ROOT,
  )


def read_model(workdir: str) -> list[tuple[str, bytes]]:
  """Returns the bytes of each array of a stage's model."""
  import jax
  import numpy as np

  from instructgpt_jax.distributed import mesh as mesh_lib
  from instructgpt_jax.training import networks, stage_model

  stage = stage_model.open_stage(workdir)
  params = networks.load_params(stage, mesh_lib.make_mesh(configs.Mesh()))
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return [(str(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]


# Load.


def load(
  directory: pathlib.Path,
  *,
  labelers: int,
  seconds: float,
  think: float,
  completions: int,
) -> dict[str, Any]:
  """Measures saving under load; returns percentiles in milliseconds.

  Each labeler reads an item, saves drafts of it, and submits it, with a pause
  of `think` seconds before each save: pages save half a second after a key.
  """
  # More items than they can do, so that nobody runs out of work.
  per_label = think * (_DRAFTS + 1)
  prompts = math.ceil(labelers * seconds / max(per_label, 0.05)) + labelers
  prompts = min(prompts, 2000)
  site = make_site(
    directory,
    labelers=labelers,
    prompts=prompts,
    completions=completions,
    overlap=3,
  )
  server = Server(site.store)
  memory = []
  try:
    crew = join_all(site, server.port)
    for client, _ in crew:
      client.seconds.clear()
    cpu = server.cpu_seconds()
    end = time.monotonic() + seconds
    done: list[simulated.Acknowledged] = []

    def label(client: simulated.Client, persona: simulated.Persona) -> None:
      rng = random.Random(persona.name)

      def pause() -> None:
        time.sleep(rng.uniform(0.5, 1.5) * think)

      for one in simulated.work_items(
        client, persona, site.world, drafts=_DRAFTS, think=pause
      ):
        done.append(one)
        if time.monotonic() > end:
          return

    work = Work(crew, label)
    while time.monotonic() < end:
      memory.append(server.memory())
      time.sleep(min(1.0, seconds / 10))
    work.wait()
    cpu = server.cpu_seconds() - cpu
    memory.append(server.memory())
  finally:
    server.stop()
  figures: dict[str, Any] = {"labels": len(done)}
  for name in ("draft", "submit", "next"):
    values = sorted(
      v for client, _ in crew for v in client.seconds.get(name, ())
    )
    figures[name] = {"n": len(values)}
    for percent in (50, 95, 99, 100):
      position = min(
        len(values) - 1, math.ceil(percent / 100 * len(values)) - 1
      )
      figures[name][f"p{percent}_ms"] = round(1000 * values[position], 1)
  requests = sum(figures[name]["n"] for name in ("draft", "submit", "next"))
  figures["cpu_ms_per_request"] = round(1000 * cpu / max(requests, 1), 2)
  middle = memory[len(memory) // 2]
  figures["memory_mib"] = {
    "first": round(memory[0]), "middle": round(middle),
    "last": round(memory[-1]), "most": round(max(memory)),
  }  # fmt: skip
  return figures


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a benchmark, and prints its figures as JSON."""
  streams.accept_all_text()
  flags = _parser().parse_args(argv)
  with tempfile.TemporaryDirectory(prefix="labeling-") as name:
    directory = pathlib.Path(flags.directory or name)
    directory.mkdir(parents=True, exist_ok=True)
    try:
      if flags.command == "accept":
        figures = accept(
          directory,
          labelers=flags.labelers,
          prompts=flags.prompts,
          completions=flags.completions,
          overlap=flags.overlap,
          kills=flags.kills,
          train=flags.train,
        )
      else:
        figures = load(
          directory,
          labelers=flags.labelers,
          seconds=flags.seconds,
          think=flags.think,
          completions=flags.completions,
        )
        print(json.dumps(figures), flush=True)
        for name in ("draft", "submit"):
          p99 = figures[name]["p99_ms"]
          check(p99 < flags.p99_ms, f"p99 of {name} is {p99} ms")
        most = figures["memory_mib"]["most"]
        check(most < flags.memory_mib, f"the server used {most} MiB at most")
    except Failed as error:
      print(f"failed: {error}", file=sys.stderr)
      return 1
  print(json.dumps(figures))
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.labeling",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  for name, labelers in (("accept", 20), ("load", 100)):
    command = commands.add_parser(name)
    command.add_argument("--labelers", type=int, default=labelers)
    command.add_argument("--completions", type=int, default=6)
    command.add_argument(
      "--directory", default="", help="directory that is kept (default: none)"
    )
    if name == "accept":
      command.add_argument("--prompts", type=int, default=500)
      command.add_argument("--overlap", type=int, default=3)
      command.add_argument("--kills", type=int, default=2)
      command.add_argument("--train", action="store_true")
    else:
      command.add_argument("--seconds", type=float, default=60.0)
      command.add_argument("--think", type=float, default=2.0)
      command.add_argument("--p99_ms", type=float, default=200.0)
      command.add_argument("--memory_mib", type=float, default=400.0)
  return parser


if __name__ == "__main__":
  sys.exit(main())
