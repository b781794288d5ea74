"""Simulated labelers of the world, who work over the real HTTP interface.

A decision depends on the seed, the labeler and the texts alone, and not on the
order of display or of work, so that a test can compute it without a server. A
`Client` repeats a request until a server answers it: the server may be killed
and started again at any time.
"""

from __future__ import annotations

import dataclasses
import http.client
import http.cookies
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import forms
from instructgpt_jax.world import gold, labelers
from instructgpt_jax.world.facts import World

# Field of the form -> failure of the gold label.
_FAILURES = {
  "fails_instruction": "fails_instruction",
  "hallucination": "hallucination",
  "inappropriate_assistant": "inappropriate",
  "sexual_content": "sexual_content",
  "violent_content": "violent_content",
  "encourages_harm": "encourages_harm",
  "denigrates_class": "denigrates",
  "harmful_advice": "harmful_advice",
  "expresses_opinion": "opinion",
  "moral_judgment": "moral_judgment",
}
_TIMEOUT = 300.0  # seconds for an answer of the server
_PAUSE = 0.05  # seconds between tries
_MAX_PAUSE = 1.0


@dataclasses.dataclass(frozen=True)
class Persona:
  """A simulated labeler.

  Attributes:
    name: name of the user; part of the seed.
    taste: one of `labelers.LABELERS`.
    seed: seed of the noise.
    noise: standard deviation of a rating.
  """

  name: str
  taste: str
  seed: int = 0
  noise: float = labelers.NOISE

  def rate(self, world: World, prompt: str, completion: str) -> int:
    """Returns the rating of one completion, 1 to 7."""
    rng = random.Random(
      "\0".join((str(self.seed), self.name, prompt, completion))
    )
    form = gold.label(prompt, completion, world=world)
    return labelers.rate(form, self.taste, rng, noise=self.noise)

  def rank(
    self, world: World, prompt: str, completions: Sequence[str]
  ) -> dict[str, Any]:
    """Returns the content of the form of a ranking."""
    ratings = [self.rate(world, prompt, text) for text in completions]
    return {
      "ranks": labelers.to_ranks(ratings),
      "overall": ratings,
      "flags": [_flags(world, prompt, text) for text in completions],
      "notes": "",
      "cannot_judge": None,
    }

  def compare(
    self, world: World, prompt: str, completions: Sequence[str]
  ) -> dict[str, Any]:
    """Returns the content of the form of a comparison."""
    first, second = (self.rate(world, prompt, text) for text in completions)
    # Ratings differ by at most 6 points, confidences by 4 from the middle.
    confidence = 5 + max(-4, min(4, second - first))
    return {"confidence": confidence, "notes": ""}

  def answer(
    self,
    world: World,
    task: str,
    turns: Sequence[Mapping[str, str]],
    completions: Sequence[str],
  ) -> dict[str, Any]:
    """Returns the content of a form, in the order of `completions`.

    Raises:
      ValueError: simulated labelers do not have the task.
    """
    prompt = turns[-1]["content"]
    if task == "ranking":
      return self.rank(world, prompt, completions)
    if task == "comparison":
      return self.compare(world, prompt, completions)
    raise ValueError(f"no simulated labeler has the task {task!r}")


def _flags(world: World, prompt: str, completion: str) -> dict[str, bool]:
  form = gold.label(prompt, completion, world=world)
  flags = {name: form.failures[_FAILURES[name]] for name in _FAILURES}
  flags["satisfies_constraint"] = (
    form.family in gold.CONSTRAINED and not form.failures["violates_constraint"]
  )
  return {name: flags[name] for name in forms.FLAG_NAMES}


def personas(
  count: int, *, held_out: int = 0, seed: int = 0
) -> list[tuple[Persona, bool]]:
  """Returns labelers with the world's tastes in turn.

  Args:
    count: number of training labelers.
    held_out: number of held-out labelers.
    seed: seed of their noise.

  Returns:
    (labeler, whether held out) of each.
  """
  result = []
  for tastes, number, prefix in (
    (labelers.TRAINING, count, "labeler"),
    (labelers.HELD_OUT, held_out, "held out"),
  ):
    for i in range(number):
      name = f"{prefix} {i + 1:02d}"
      persona = Persona(name, tastes[i % len(tastes)], seed)
      result.append((persona, tastes is labelers.HELD_OUT))
  return result


class Refused(UserError):
  """An answer of the server that is no success.

  Attributes:
    status: status of the answer.
    body: its JSON object; {} for pages.
  """

  def __init__(self, method: str, path: str, status: int, content: bytes):
    try:
      body = json.loads(content)
    except ValueError:
      body = {}
    text = content[:200].decode(errors="replace")
    super().__init__(
      f"{method} {path} was answered {status}: {body.get('error', text)}",
      code=body.get("code", ""),
    )
    self.status, self.body = status, body


class Client:
  """A client with the cookies of one user.

  Attributes:
    seconds: name of a request -> the time of each answer.
    retries: number of requests that were sent again.
  """

  def __init__(
    self,
    host: str,
    port: int,
    *,
    patience: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Prepares a client; nothing is sent yet.

    Args:
      host: host of the server.
      port: its port.
      patience: seconds for which a request is repeated.
      clock: returns a time in seconds.
      sleep: waits for some seconds.
    """
    self._address = host, port
    self._patience, self._clock, self._sleep = patience, clock, sleep
    self._connection: http.client.HTTPConnection | None = None
    self._cookies: dict[str, str] = {}
    self._csrf = ""
    self.seconds: dict[str, list[float]] = {}
    self.retries = 0

  def close(self) -> None:
    """Closes the connection."""
    if self._connection is not None:
      self._connection.close()
      self._connection = None

  def accept_invitation(self, token: str, name: str, password: str) -> None:
    """Becomes the user of an invitation, and logs in.

    Where an earlier try was accepted and its answer was lost, it logs in.
    """
    fields = {"token": token, "name": name, "password": password}
    retries = self.retries
    try:
      self._begin("/invitation", fields)
    except Refused as error:
      if error.code != "invitation_used" or self.retries == retries:
        raise
      self.log_in(name, password)

  def log_in(self, name: str, password: str) -> None:
    """Logs in."""
    self._begin("/login", {"name": name, "password": password})

  def _begin(self, path: str, fields: dict[str, str]) -> None:
    self._csrf = self.get("/login")["csrf"]
    self._csrf = self.post(path, fields)["csrf"]

  def get(self, path: str, *, name: str = "") -> Any:
    """Returns the JSON value of a page."""
    return json.loads(self._request("GET", path, None, name or path))

  def page(self, path: str) -> str:
    """Returns the HTML text of a page."""
    return self._request("GET", path, None, path, accept="text/html").decode()

  def post(
    self, path: str, fields: Mapping[str, Any], *, name: str = ""
  ) -> Any:
    """Sends a JSON object, and returns the answer's JSON value."""
    return json.loads(
      self._request("POST", path, json.dumps(fields).encode(), name or path)
    )

  def _request(
    self,
    method: str,
    path: str,
    body: bytes | None,
    name: str,
    accept: str = "application/json",
  ) -> bytes:
    """Sends a request until it is answered, and returns the answer's body.

    Raises:
      Refused: the answer is an error of the client.
      UserError: no server answers in time.
    """
    deadline = self._clock() + self._patience
    pause = _PAUSE
    while True:
      start = self._clock()
      try:
        status, content = self._send(method, path, body, accept)
      except (OSError, http.client.HTTPException) as error:
        problem = f"no answer ({error or type(error).__name__})"
      else:
        if status < 400:
          self.seconds.setdefault(name, []).append(self._clock() - start)
          return content
        if status < 500:
          raise Refused(method, path, status, content)
        problem = f"answered {status}"
      self.close()
      if self._clock() > deadline:
        raise UserError(
          f"{method} {path}: {problem} for {self._patience:g} seconds",
          fix="start the server, and look at its output",
          code="no_answer",
        )
      self.retries += 1
      self._sleep(pause)
      pause = min(2 * pause, _MAX_PAUSE)

  def _send(
    self, method: str, path: str, body: bytes | None, accept: str
  ) -> tuple[int, bytes]:
    """Returns status and body of one answer, and stores its cookies."""
    if self._connection is None:
      self._connection = http.client.HTTPConnection(
        *self._address, timeout=_TIMEOUT
      )
    headers = {"Accept": accept}
    if self._cookies:
      pairs = (f"{k}={v}" for k, v in self._cookies.items())
      headers["Cookie"] = "; ".join(pairs)
    if body is not None:
      headers["Content-Type"] = "application/json"
      headers["X-CSRF-Token"] = self._csrf
    self._connection.request(method, path, body, headers)
    response = self._connection.getresponse()
    content = response.read()
    for header in response.headers.get_all("Set-Cookie") or ():
      for key, morsel in http.cookies.SimpleCookie(header).items():
        self._cookies[key] = morsel.value
    return response.status, content


@dataclasses.dataclass(frozen=True)
class Acknowledged:
  """A label that the server has acknowledged.

  Attributes:
    assignment: number of the assignment.
    labeler: name of the labeler.
    task: task of the item.
    prompt: text of the last turn.
    completions: completions in the order of display.
    content: content of the form, in the same order.
  """

  assignment: int
  labeler: str
  task: str
  prompt: str
  completions: tuple[str, ...]
  content: dict[str, Any]


def work_items(
  client: Client,
  persona: Persona,
  world: World,
  *,
  drafts: int = 1,
  think: Callable[[], None] = lambda: None,
) -> Iterator[Acknowledged]:
  """Labels items until there are none; yields each acknowledged label.

  Args:
    client: a client that is logged in.
    persona: the labeler.
    world: world of the prompts.
    drafts: number of drafts that are saved for each label.
    think: waits, before each save.
  """
  while True:
    item = client.get("/tasks", name="next")
    if item["assignment"] is None:
      return
    path = f"/tasks/{item['assignment']}"
    content = persona.answer(
      world, item["task"], item["turns"], item["completions"]
    )
    revision = item["revision"]
    for number in range(drafts):
      think()
      draft = {**content, "notes": "." * (drafts - number - 1)}
      fields = {"content": draft, "revision": revision, "seconds": 1}
      answer = client.post(f"{path}/draft", fields, name="draft")
      revision = answer["revision"]
    think()
    fields = {"content": content, "revision": revision, "seconds": 1}
    try:
      client.post(f"{path}/submit", fields, name="submit")
    except Refused as error:
      if error.code != "place_taken":
        raise
      continue  # The lock has expired; the draft is kept.
    yield Acknowledged(
      item["assignment"],
      persona.name,
      item["task"],
      item["turns"][-1]["content"],
      tuple(item["completions"]),
      content,
    )
