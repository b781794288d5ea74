"""Writes tests/golden: `python -m tests.update_golden`.

The diff is then read as part of the change: it shows every recipe that moved.
"""

import pathlib
from typing import Any

from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets

GOLDEN = pathlib.Path(__file__).parent / "golden"


def texts() -> dict[str, str]:
  """Returns the text of each golden file, by file name."""
  return {
    f"{experiment}.txt": "\n".join(
      f"{preset}\n{differences(get_config(preset))}"
      for preset in presets.MODELS
    )
    for experiment, get_config in presets.EXPERIMENTS.items()
  }


def differences(config: Any) -> str:
  """Returns one line for each field that differs from its default."""
  defaults = {name: value for name, value, _ in flags.leaves(type(config)())}
  return "".join(
    f"  {name} = {value!r}\n"
    for name, value, _ in flags.leaves(config)
    if value != defaults[name]
  )


def main():
  GOLDEN.mkdir(exist_ok=True)
  expected = texts()
  for path in GOLDEN.glob("*.txt"):
    if path.name not in expected:
      path.unlink()
  for name, text in expected.items():
    (GOLDEN / name).write_text(text, encoding="utf-8")
  print(f"wrote {len(expected)} files to {GOLDEN.name}/")


if __name__ == "__main__":
  main()
