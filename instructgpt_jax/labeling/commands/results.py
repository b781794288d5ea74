"""Commands that read labels: export and agreement."""

from __future__ import annotations

import argparse

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import export as export_lib
from instructgpt_jax.labeling import export_files, quality_text, snapshot
from instructgpt_jax.labeling.commands import stores


def export(flags: argparse.Namespace) -> None:
  """Writes labels as training data."""
  fractions = {
    name: getattr(flags, name)
    for name in ("valid_fraction", "test_fraction")
    if getattr(flags, name) is not None
  }
  settings = export_lib.ExportSettings(
    filter_personal=not flags.keep_personal,
    adjudicated=flags.adjudicated,
    **fractions,
  )
  if settings.valid_fraction + settings.test_fraction >= 1:
    raise UserError(
      "the shares of validation and tests leave nothing for training",
      field="--valid_fraction",
      fix="use smaller shares",
      code="fractions",
    )
  labels = stores.read_snapshot(flags.store)
  result = export_lib.export_snapshot(labels, settings)
  export_files.write_export(result, flags.to, flags.format)
  print("\n".join([f"{flags.to}:", *export_lib.summary_lines(result)]))


def agreement(flags: argparse.Namespace) -> None:
  """Prints how labelers agree."""
  records = snapshot.records_of(stores.read_snapshot(flags.store))
  print("\n".join(quality_text.lines(records)))
