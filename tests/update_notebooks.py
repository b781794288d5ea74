"""Runs the notebooks and stores their figures, tables and printed text.

python -m tests.update_notebooks [NAME...]
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence

import nbclient
import nbformat
from ipykernel import kernelspec

DIRECTORY = pathlib.Path(__file__).parent.parent / "notebooks"
_TEMPORARY = re.compile(r"/\S*?/tmp\w{8}\b")
_ERROR = re.compile(r"^(?:error:|  fix:).*\n", re.MULTILINE)


def _stored(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
  """Returns what is stored of an output, or None for progress."""
  if output.output_type == "stream":
    text = _TEMPORARY.sub("WORK", output.text)
    if output.name == "stderr":
      text = "".join(_ERROR.findall(text))
    output.text = text
    return output if text else None
  data = output.data
  if "image/png" in data:
    output.data = {"image/png": data["image/png"]}
  output.metadata = {}
  if output.output_type == "execute_result":
    output.execution_count = None
  return output


def update(path: pathlib.Path) -> None:
  """Runs a notebook, and writes it with its outputs."""
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=1200,
    kernel_name="python3",
    resources={"metadata": {"path": str(path.parent)}},
  )
  client.execute()
  for cell in notebook.cells:
    cell.metadata = {}
    if cell.cell_type == "code":
      cell.execution_count = None
      cell.outputs = [o for o in map(_stored, cell.outputs) if o is not None]
  notebook.metadata = {
    "kernelspec": {
      "display_name": "Python 3",
      "language": "python",
      "name": "python3",
    },
    "language_info": {"name": "python"},
  }
  nbformat.write(notebook, path)


def main(names: Sequence[str]) -> None:
  """Updates the named notebooks, or all."""
  with tempfile.TemporaryDirectory() as directory:
    kernelspec.write_kernel_spec(f"{directory}/kernels/python3")
    os.environ["JUPYTER_PATH"] = directory
    os.environ.pop("MPLBACKEND", None)
    for path in sorted(DIRECTORY.glob("*.ipynb")):
      if not names or path.stem in names:
        print(path.stem, flush=True)
        update(path)


if __name__ == "__main__":
  main(sys.argv[1:])
