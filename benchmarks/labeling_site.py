"""A project with prompts of the world, its server, and labelers at work."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import project, simulated
from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.labeling.people import invitations
from instructgpt_jax.runs import files
from instructgpt_jax.world import replies, write
from instructgpt_jax.world.facts import World, make_world

ROOT = pathlib.Path(__file__).parent.parent
PASSWORD = "a long password of "
_START_SECONDS = 600.0


class Failed(Exception):
  """A check that does not hold."""


def check(holds: bool, text: str) -> None:
  """Prints a check that holds, and raises for one that does not."""
  if not holds:
    raise Failed(text)
  print(f"ok: {text}", flush=True)


def draw_answers(
  world: World,
  prompts: int,
  completions: int,
  *,
  seed: int = 0,
  repetition: bool = False,
) -> list[dict[str, Any]]:
  """Returns prompts of the world, each with answers of its people.

  Args:
    world: the world.
    prompts: number of prompts.
    completions: number of answers to each prompt.
    seed: seed of prompts and answers.
    repetition: whether answers are as they were drawn, and can be equal;
      otherwise they are different texts, as the application shows them.
  """
  rng = random.Random(f"benchmark answers {seed}")
  records = []
  for request, text in write.draw_prompts(world, "train", 8 * prompts, seed):
    answers: list[tuple[str, str]] = []
    for _ in range(20 * completions):
      if len(answers) < completions:
        persona = replies.draw_persona(replies.FORUM, rng)
        answer = replies.reply(request, persona, rng)
        if repetition or answer not in dict(answers):
          answers.append((answer, persona))
    if len(answers) == completions:
      records.append(
        {
          "prompt": text,
          "completions": [answer for answer, _ in answers],
          "sources": [persona for _, persona in answers],
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
      [invitations.invite(store, "labeler", now) for _ in crew],
      invitations.invite(store, "owner", now),
    )
  finally:
    store.close()


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
      cwd=ROOT,
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
    client.accept_invitation(token, persona.name, PASSWORD + persona.name)
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
