"""SIGTERM is remembered by a loop, which asks for it at its steps."""

import os
import signal

import pytest

from instructgpt_jax.distributed import preemption


def term():
  os.kill(os.getpid(), signal.SIGTERM)


def test_a_watch_remembers_and_puts_the_handlers_back():
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(preemption.Preempted) as caught:
    with preemption.PreemptionWatch() as watch:
      assert not watch.requested()
      term()
      assert watch.requested()
      # From now on either signal ends the process.
      for number in (signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(number) == signal.SIG_DFL
  assert caught.value.code == 0
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


def test_a_watch_without_a_signal_ends_quietly():
  with preemption.PreemptionWatch() as watch:
    assert not watch.requested()


def test_an_error_is_not_hidden_by_a_signal():
  with pytest.raises(ValueError, match="ours"), preemption.PreemptionWatch():
    term()
    raise ValueError("ours")
