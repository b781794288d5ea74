"""Settings of a program's process: output of libraries, threads, memory."""

import ctypes
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from instructgpt_jax.cli import process_settings


def test_libtpu_without_a_tpu_prints_nothing():
  script = """
    from instructgpt_jax.cli import process_settings
    process_settings.silence_libraries()
    import jax
    jax.devices()
  """
  env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    capture_output=True,
    text=True,
    env=env | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
  )
  assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
  "env, expected",
  [
    ({}, None),
    ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, None),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "16"),
    (
      {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PJRT_NPROC": "3",
      },
      "3",
    ),
  ],
)
def test_simulated_devices_get_two_threads_each(env, expected):
  process_settings.set_cpu_device_threads(env)
  assert env.get("PJRT_NPROC") == expected


COMPILES = """
  import ctypes
  import jax
  import jax.numpy as jnp
  from instructgpt_jax.cli import process_settings

  def resident():
    with open("/proc/self/status") as file:
      (line,) = [line for line in file if line.startswith("VmRSS:")]
    return int(line.split()[1])

  trim = ctypes.CDLL(None).malloc_trim
  jnp.ones(2).block_until_ready()
  if {trims}:
    # A quick machine compiles this program in less than the shortest time.
    process_settings._MIN_COMPILE_SECONDS = 0
    process_settings.trim_malloc_after_compile()
  trim(0)

  def many(x):
    for i in range(100):
      x = jnp.tanh(x @ x + i)
    return x

  jax.jit(many).lower(jnp.ones((8, 8))).compile()
  before = resident()
  trim(0)
  print(before - resident())
"""


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc"
)
def test_memory_freed_by_compilation_is_trimmed():
  def untrimmed(trims):
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(COMPILES.format(trims=trims))],
      capture_output=True,
      text=True,
      env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)

  with_trim, without = untrimmed(True), untrimmed(False)
  assert with_trim < 0.5 * without


def test_garbage_is_collected_rarely():
  code = """
    import gc, weakref
    from instructgpt_jax.cli import process_settings

    class Ring: pass

    default = gc.get_threshold()[0]
    process_settings.tune_gc()
    assert gc.get_threshold()[0] > 10 * default
    assert gc.get_freeze_count() > 10**4
    ring = Ring()
    ring.itself = ring
    reference = weakref.ref(ring)
    del ring
    objects = [[] for _ in range(2 * gc.get_threshold()[0])]
    assert reference() is None
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
