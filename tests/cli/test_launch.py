"""Exit statuses, short errors, and runs that can be given again."""

import ctypes
import errno
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import pytest

from instructgpt_jax.cli import flags, launch
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError


def _main(*argv, run=lambda config, workdir: None, experiment="sft"):
  return launch.main(
    experiment,
    presets.sft,
    run,
    "Doc.",
    argv=argv,
    default_preset="tiny",
    presets=presets.NAMES,
  )


def test_a_libtpu_without_a_tpu_says_nothing():
  script = """
    from instructgpt_jax.cli import launch
    launch.silence_libraries()
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
  "given, wanted",
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
def test_pretended_devices_get_threads(given, wanted):
  launch.set_cpu_device_threads(given)
  assert given.get("PJRT_NPROC") == wanted


COMPILES = """
  import ctypes
  import jax
  import jax.numpy as jnp
  from instructgpt_jax.cli import launch

  def resident():
    with open("/proc/self/status") as file:
      (line,) = [line for line in file if line.startswith("VmRSS:")]
    return int(line.split()[1])

  trim = ctypes.CDLL(None).malloc_trim
  jnp.ones(2).block_until_ready()
  if {asked}:
    launch.trim_malloc_after_compile()
  trim(0)

  def many(x):
    for i in range(100):
      x = jnp.tanh(x @ x + i)
    return x

  jax.jit(many).lower(jnp.ones((8, 8))).compile()
  held = resident()
  trim(0)
  print(held - resident())
"""


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc"
)
def test_what_compiling_leaves_is_given_back():
  def left(asked):
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(COMPILES.format(asked=asked))],
      capture_output=True,
      text=True,
      env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)

  found = left(True), left(False)
  print(found)
  assert found[0] < 0.5 * found[1]


def test_a_run_looks_for_garbage_seldom_and_finds_it():
  code = """
    import gc, weakref
    from instructgpt_jax.cli import launch

    class Ring: pass

    usual = gc.get_threshold()[0]
    launch.tune_gc()
    assert gc.get_threshold()[0] > 10 * usual and gc.get_freeze_count() > 10**4
    ring = Ring()
    ring.itself = ring
    gone = weakref.ref(ring)
    del ring
    kept = [[] for _ in range(2 * gc.get_threshold()[0])]
    assert gone() is None
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_run_gets_config_and_workdir_and_the_config_is_kept(tmp_path):
  seen = []
  status = _main(
    f"--workdir={tmp_path}",
    "--sft.epochs=3",
    run=lambda config, workdir: seen.append((config, workdir)),
  )
  assert status == 0
  ((config, workdir),) = seen
  assert (config.sft.epochs, workdir) == (3, str(tmp_path))
  held = json.loads((tmp_path / "config.json").read_text())
  assert held == {
    "experiment": "sft",
    "config": flags.config_to_dict(config),
  }


def test_a_run_can_be_run_again_from_its_config_file(tmp_path):
  seen = []

  def run(config, workdir):
    seen.append(config)

  first, second = tmp_path / "first", tmp_path / "second"
  assert _main(f"--workdir={first}", "--seed=5", run=run) == 0
  config_file = first / "config.json"
  assert _main(f"--workdir={second}", f"--config={config_file}", run=run) == 0
  assert seen[0] == seen[1]
  assert (second / "config.json").read_text() == config_file.read_text()


def test_another_experiments_workdir_is_refused(tmp_path, capsys):
  assert _main(f"--workdir={tmp_path}") == 0
  never = pytest.fail
  status = _main(f"--workdir={tmp_path}", experiment="ppo", run=never)
  assert status == 2
  error = capsys.readouterr().err
  assert "holds the experiment 'sft', not 'ppo'" in error
  assert "fix: choose another --workdir" in error


def test_help_is_on_stdout_and_makes_no_workdir(tmp_path, capsys):
  workdir = tmp_path / "run"
  assert _main(f"--workdir={workdir}", "--help", run=pytest.fail) == 0
  out, err = capsys.readouterr()
  assert out.startswith("Doc.\n") and err == ""
  assert not workdir.exists()


def test_a_wrong_flag_is_status_2_and_makes_no_workdir(tmp_path, capsys):
  workdir = tmp_path / "run"
  assert _main(f"--workdir={workdir}", "--sft.epoch=1", run=pytest.fail) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.splitlines() == [
    "error: [--sft.epoch]: there is no such flag",
    "  fix: did you mean --sft.epochs? --help lists all flags",
  ]
  assert not workdir.exists()


@pytest.mark.parametrize(
  "error, status, words",
  [
    (UserError("bad", file="f.json", line=3, fix="mend it"), 2, "f.json:3"),
    (UserError("a\nb\nc\nd\ne", fix="mend it"), 2, "fix: mend it"),
    (UserError("x" * 5000, fix="mend it"), 2, "fix: mend it"),
    (KeyboardInterrupt(), 130, "goes on from the last checkpoint"),
    (OSError(errno.ENOSPC, "full", "some/file"), 2, "some/file: the disk is"),
  ],
)
def test_errors_are_at_most_three_lines(tmp_path, capsys, error, status, words):
  def run(config, workdir):
    raise error

  assert _main(f"--workdir={tmp_path}", run=run) == status
  text = capsys.readouterr().err
  assert words in text
  assert len(text.splitlines()) <= 3
  assert len(text) < 1000
  assert "Traceback" not in text


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.EIO, "")])
def test_our_own_mistakes_are_not_hidden(tmp_path, error):
  def run(config, workdir):
    raise error

  with pytest.raises(type(error)):
    _main(f"--workdir={tmp_path}", run=run)


@pytest.fixture
def cache_settings(monkeypatch):
  """What `launch` tells JAX."""
  told = {}
  monkeypatch.setattr(jax.config, "update", told.__setitem__)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  return told


def test_compiled_programs_are_kept_in_the_users_cache(
  cache_settings, monkeypatch, tmp_path
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  launch.use_compile_cache("")
  folder = cache_settings["jax_compilation_cache_dir"]
  assert folder == str(tmp_path / "home" / "instructgpt_jax" / "compiled")
  assert os.path.isdir(folder)
  launch.use_compile_cache(str(tmp_path / "named"))
  assert cache_settings["jax_compilation_cache_dir"] == str(tmp_path / "named")


def test_no_cache_where_none_is_wanted_or_jax_has_one(
  cache_settings, monkeypatch, tmp_path
):
  launch.use_compile_cache("none")
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  launch.use_compile_cache("")  # cannot be made: the run goes on without
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
  launch.use_compile_cache("")
  assert not cache_settings
  with pytest.raises(UserError):
    launch.use_compile_cache(str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("flag", ["user_tag", "turn_separator"])
def test_flags_of_texts_must_be_utf8(tmp_path, capsys, flag):
  """Paths may hold any bytes; texts go into prompts and have to be texts."""
  workdir = tmp_path / "caf\udce9"
  assert _main(f"--data.{flag}=caf\udce9", f"--workdir={workdir}") == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: [--data.{flag}]") and "UTF-8" in error
  assert not workdir.exists()
  argv = ("--data.demonstrations=caf\udce9.jsonl", f"--workdir={workdir}")
  for _ in range(2):  # the config that the first wrote is that of the second
    assert _main(*argv) == 0
  assert (workdir / "config.json").exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG])
def test_a_path_that_cannot_be_used_is_no_traceback(capsys, code):
  def body():
    raise OSError(code, os.strerror(code), "some/file")

  assert launch.run_with_errors(body) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: some/file: ") and "fix: " in error


def test_other_faults_of_the_system_keep_their_traceback():
  for fault in (OSError(errno.EACCES, "no name"), OSError(errno.EIO, "", "a")):
    with pytest.raises(OSError):
      launch.run_with_errors(lambda fault=fault: (_ for _ in ()).throw(fault))
