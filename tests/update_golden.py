"""Writes tests/golden anew: `python -m tests.update_golden`.

The diff is then read as part of the change: it shows every recipe that moved.
"""

import pathlib

from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets

GOLDEN = pathlib.Path(__file__).parent / "golden"
PRESETS = ("tiny", "world", "1.3b", "6b", "175b")


def texts() -> dict[str, str]:
  """File name → rendered config, of each experiment and preset."""
  return {
    f"{experiment}.{preset}.txt": flags.render(get_config(preset))
    for experiment, get_config in presets.EXPERIMENTS.items()
    for preset in PRESETS
  }


def main():
  GOLDEN.mkdir(exist_ok=True)
  wanted = texts()
  for path in GOLDEN.glob("*.txt"):
    if path.name not in wanted:
      path.unlink()
  for name, text in wanted.items():
    (GOLDEN / name).write_text(text, encoding="utf-8")
  print(f"wrote {len(wanted)} files to {GOLDEN.name}/")


if __name__ == "__main__":
  main()
