"""A process that is frozen, and still connected, ends its run."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from instructgpt_jax import configs
from instructgpt_jax.distributed import processes

TIMEOUT = 4.0
# Two processes without JAX's service, which end when a file appears.
SCRIPT = """
  import os, sys, time
  from instructgpt_jax import configs
  from instructgpt_jax.distributed import processes

  processes._start_jax = processes._stop_jax = lambda *unused: None
  me, port, timeout, gate = sys.argv[1:]
  section = configs.Processes(
    coordinator=f"localhost:{port}", count=2, index=int(me),
    timeout=float(timeout))
  flags = {"workdir": os.path.dirname(gate)}
  with processes.distributed_context(section, flags):
    print("together", flush=True)
    while not os.path.exists(gate):
      time.sleep(0.05)
  print("done", flush=True)
"""


@pytest.fixture
def two(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  begun = [
    subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(SCRIPT)]
      + [str(me), str(port), str(TIMEOUT), str(tmp_path / "gate")],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for me in range(2)
  ]
  for process in begun:
    assert process.stdout.readline() == "together\n"
  yield begun
  for process in begun:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_is_named_and_all_end(two, frozen):
  two[frozen].send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  _, error = two[1 - frozen].communicate(timeout=60)
  assert time.monotonic() - stopped > TIMEOUT / 2
  assert two[1 - frozen].returncode == processes.ENDED_EARLY
  lines = error.splitlines()
  assert lines[0].startswith(f"warning: process {frozen} has sent nothing")
  assert lines[1].startswith(f"error: process {frozen} has been silent for 4 s")
  assert lines[2].startswith("  fix: ") and "processes.timeout" in lines[2]
  assert len(lines) == 3
  # It ends as well once it goes on.
  two[frozen].send_signal(signal.SIGCONT)
  _, error = two[frozen].communicate(timeout=60)
  assert two[frozen].returncode == processes.ENDED_EARLY
  assert error.startswith("error: process ")


def test_processes_that_say_nothing_else_go_on(two, tmp_path):
  time.sleep(1.5 * TIMEOUT)
  assert [process.poll() for process in two] == [None, None]
  (tmp_path / "gate").touch()
  for process in two:
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "done\n", error


def lines():
  return [processes._Line(end) for end in socket.socketpair()]


def test_a_late_heartbeat_is_warned_of_and_forgiven(capsys):
  one, other = lines()

  def late():
    time.sleep(0.7)
    one.say(beat=True)
    one.say(end=True)

  threading.Thread(target=late).start()
  assert other.follow(1.0, "process 7") == {"end": True}
  error = capsys.readouterr().err
  assert "warning: process 7 has sent nothing for 0.5 s" in error
  assert "process 7 is there again" in error
  for line in (one, other):
    line.close()


def test_silence_and_an_end_are_told_apart():
  one, other = lines()
  one._socket.sendall(b'{"error": "half')  # a message in the making
  with pytest.raises(TimeoutError):
    other.follow(0.2, "process 1")
  one._socket.sendall(b' a word"}\n')
  assert other.follow(5.0, "process 1") == {"error": "half a word"}
  one.say(beat=True)
  one.close()
  assert other.follow(5.0, "process 1") is None
  other.close()


def test_a_file_system_that_hangs_stops_the_heartbeat(monkeypatch, tmp_path):
  hangs = threading.Event()
  monkeypatch.setattr(os, "statvfs", lambda path: hangs.wait(30))
  messages = []
  beats = processes._Heartbeat(
    lambda **message: messages.append(message), 0.2, str(tmp_path)
  )
  time.sleep(0.3)
  assert not messages
  hangs.set()
  until = time.monotonic() + 30
  while not messages and time.monotonic() < until:
    time.sleep(0.01)
  beats.stop()
  assert messages[0] == {"beat": True}


def test_beats_are_many_within_the_timeout():
  assert configs.Processes().timeout / processes._BEATS >= processes._SELDOM
