"""A PreemptionWatch remembers SIGTERM until the loop asks for it."""

import os
import signal

import pytest

from instructgpt_jax.distributed import preemption


def send_sigterm():
  os.kill(os.getpid(), signal.SIGTERM)


def test_watch_remembers_sigterm_and_restores_handlers():
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(preemption.Preempted) as error:
    with preemption.PreemptionWatch() as watch:
      assert not watch.requested()
      send_sigterm()
      assert watch.requested()
      # A second signal of either kind now ends the process.
      for number in (signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(number) == signal.SIG_DFL
  assert error.value.code == 0
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


def test_watch_without_a_signal_does_nothing():
  with preemption.PreemptionWatch() as watch:
    assert not watch.requested()


def test_signal_does_not_hide_an_error():
  with pytest.raises(ValueError, match="ours"), preemption.PreemptionWatch():
    send_sigterm()
    raise ValueError("ours")
