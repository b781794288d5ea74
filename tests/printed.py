"""Records the user errors that a command prints, to test their codes."""

from __future__ import annotations

import pytest

from instructgpt_jax.cli import launch
from instructgpt_jax.errors import UserError


def record_errors(monkeypatch: pytest.MonkeyPatch) -> list[UserError]:
  """Returns the list to which each error that is printed is added."""
  errors: list[UserError] = []
  plain = launch.error_text

  def recorded(error: UserError) -> str:
    errors.append(error)
    return plain(error)

  monkeypatch.setattr(launch, "error_text", recorded)
  return errors
