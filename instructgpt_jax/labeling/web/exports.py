"""The owner's page of exports, and their files."""

from __future__ import annotations

from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import export, export_files, snapshot
from instructgpt_jax.labeling.web.visit import Visit, not_found


def show(visit: Visit) -> Response:
  """Shows what an export has, and links to its files."""
  result = _export(visit)
  return visit.render(
    "export.html",
    files=[(name, len(rows)) for name, rows in result.files.items()],
    left_out=result.left_out,
    labels=result.labels,
    formats=export_files.FORMATS,
    held_out=export.HELD_OUT,
  )


def download(visit: Visit) -> Response:
  """Returns one file of an export."""
  name = visit.request.path_params["name"]
  stem, _, file_format = name.rpartition(".")
  if stem not in export.FILES or file_format not in export_files.FORMATS:
    raise not_found()
  result = _export(visit)
  if stem not in result.files:
    raise not_found()
  return Response(
    export_files.encode(result.files[stem], file_format),
    media_type="application/octet-stream",
    headers={"Content-Disposition": f'attachment; filename="{name}"'},
  )


def _export(visit: Visit) -> export.Export:
  with visit.store.read() as connection:
    content = snapshot.read_snapshot(connection)
  return export.export_snapshot(content)
