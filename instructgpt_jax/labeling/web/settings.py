"""Settings of the web application."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from instructgpt_jax.labeling import project, screening
from instructgpt_jax.labeling.assignment import Rules

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the pages.

  Attributes:
    project: the project's settings.
    hosts: host names under which requests are accepted; () accepts any. A page
      in a browser can reach a loopback address under a name of its own.
    https: whether browsers reach the server over https only: cookies are then
      `Secure`, and HSTS is on.
    idle_seconds: time without a key or a movement after which a labeler is
      idle.
    count_tokens: returns the number of a model's tokens in a text, or None.
    clock: returns the time in UTC seconds.
  """

  project: project.Settings = project.Settings()
  hosts: tuple[str, ...] = LOOPBACK
  https: bool = False
  idle_seconds: int = 60
  count_tokens: Callable[[str], int] | None = None
  clock: Callable[[], float] = time.time

  @property
  def title(self) -> str:
    """The project's name."""
    return self.project.title

  @property
  def rules(self) -> Rules:
    """Settings of assignment."""
    return self.project.rules()

  @property
  def cuts(self) -> screening.Cuts:
    """Soft cuts of screening."""
    return self.project.cuts()
