"""A process that freezes while connected ends its run."""

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
from instructgpt_jax.distributed import connection, rendezvous

TIMEOUT = 4.0
# A process without JAX's service, which ends when a file appears.
SCRIPT = """
  import os, sys, time
  from instructgpt_jax import configs
  from instructgpt_jax.distributed import processes, rendezvous

  processes._start_jax = rendezvous.stop_jax = lambda *unused: None
  index, port, timeout, gate = sys.argv[1:]
  section = configs.Processes(
    coordinator=f"localhost:{port}", count=2, index=int(index),
    timeout=float(timeout))
  flags = {"workdir": os.path.dirname(gate)}
  with processes.distributed_context(section, flags):
    print("connected", flush=True)
    while not os.path.exists(gate):
      time.sleep(0.05)
  print("done", flush=True)
"""


@pytest.fixture
def both(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(SCRIPT)]
      + [str(index), str(port), str(TIMEOUT), str(tmp_path / "gate")],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  for process in started:
    assert process.stdout.readline() == "connected\n"
  yield started
  for process in started:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_process_is_named_and_all_end(both, frozen):
  both[frozen].send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  _, error = both[1 - frozen].communicate(timeout=60)
  assert time.monotonic() - stopped > TIMEOUT / 2
  assert both[1 - frozen].returncode == rendezvous.PEER_FAILED
  lines = error.splitlines()
  assert lines[0].startswith(f"warning: process {frozen} has sent nothing")
  assert lines[1].startswith(
    f"error: process {frozen} has not responded for 4 s"
  )
  assert lines[2].startswith("  fix: ") and "processes.timeout" in lines[2]
  assert len(lines) == 3
  # The frozen process ends as well once it continues.
  both[frozen].send_signal(signal.SIGCONT)
  _, error = both[frozen].communicate(timeout=60)
  assert both[frozen].returncode == rendezvous.PEER_FAILED
  assert error.startswith("error: process ")


def test_processes_that_send_only_heartbeats_continue(both, tmp_path):
  time.sleep(1.5 * TIMEOUT)
  assert [process.poll() for process in both] == [None, None]
  (tmp_path / "gate").touch()
  for process in both:
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "done\n", error


def connected_pair():
  return [connection.Connection(end) for end in socket.socketpair()]


def test_late_heartbeat_is_only_a_warning(capsys):
  one, other = connected_pair()

  def late():
    time.sleep(0.7)
    one.send(heartbeat=True)
    one.send(end=True)

  threading.Thread(target=late).start()
  assert other.receive_past_heartbeats(1.0, "process 7") == {"end": True}
  error = capsys.readouterr().err
  assert "warning: process 7 has sent nothing for 0.5 s" in error
  assert "process 7 responds again" in error
  one.close()
  other.close()


def test_silence_differs_from_a_closed_connection():
  one, other = connected_pair()
  one._socket.sendall(b'{"error": "two')  # an incomplete message
  with pytest.raises(TimeoutError):
    other.receive_past_heartbeats(0.2, "process 1")
  one._socket.sendall(b' parts"}\n')
  message = other.receive_past_heartbeats(5.0, "process 1")
  assert message == {"error": "two parts"}
  one.send(heartbeat=True)
  one.close()
  assert other.receive_past_heartbeats(5.0, "process 1") is None
  other.close()


def test_hanging_file_system_stops_the_heartbeat(monkeypatch, tmp_path):
  hangs = threading.Event()
  monkeypatch.setattr(os, "statvfs", lambda path: hangs.wait(30))
  messages = []
  heartbeat = connection.Heartbeat(
    lambda **message: messages.append(message), 0.2, str(tmp_path)
  )
  time.sleep(0.3)
  assert not messages
  hangs.set()
  until = time.monotonic() + 30
  while not messages and time.monotonic() < until:
    time.sleep(0.01)
  heartbeat.stop()
  assert messages[0] == {"heartbeat": True}


def test_default_timeout_covers_many_heartbeats():
  interval = configs.Processes().timeout / connection.HEARTBEATS_PER_TIMEOUT
  assert interval >= connection.MAX_HEARTBEAT_INTERVAL
