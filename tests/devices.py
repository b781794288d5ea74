"""Several devices on one CPU, for processes that tests start."""

from instructgpt_jax.cli import process_settings


def pretended(count, flags=""):
  """Returns the environment of a process with a number of CPU devices."""
  counted = f"--xla_force_host_platform_device_count={count}"
  env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {counted}".strip()}
  process_settings.set_cpu_device_threads(env)
  return env
