"""Recognises directories that `save_to_disk` of Hugging Face datasets wrote.

Such a directory has Arrow files, `dataset_info.json`, and `state.json` with the
names of the Arrow files that belong to it. Others may lie beside them: caches,
and shards of an earlier save. A dictionary of splits is a directory with
`dataset_dict.json` and a directory of this kind for each split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from instructgpt_jax.errors import UserError

STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
NOT_LISTED = f"an Arrow file that {STATE} does not list"


def unlisted(directory: str, names: Sequence[str]) -> list[str]:
  """Returns the Arrow files of a saved dataset that are none of its data.

  Args:
    directory: any directory.
    names: the names of its files.

  Raises:
    UserError: a file of the dataset is missing, or its description is damaged.
  """
  if STATE not in names or _INFO not in names:
    return []
  path = os.path.join(directory, STATE)
  try:
    with open(path, encoding="utf-8") as file:
      state = json.load(file)
    listed = [str(entry["filename"]) for entry in state["_data_files"]]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise UserError(
      f"does not list the files of a dataset ({type(error).__name__})",
      file=path,
      field="_data_files",
      fix="save the dataset again with save_to_disk, or give its .arrow files",
      code="bad_dataset_state",
    ) from error
  missing = [name for name in listed if name not in names]
  if missing:
    raise UserError(
      f"is missing: {STATE} lists {len(listed)} files",
      file=os.path.join(directory, missing[0]),
      fix="copy the whole directory again",
      code="missing_shard",
    )
  return [n for n in names if n.endswith(".arrow") and n not in listed]


def require_splits(directory: str, names: Sequence[str]) -> None:
  """Refuses a dictionary of splits without the directory of a split."""
  if _SPLITS not in names:
    return
  path = os.path.join(directory, _SPLITS)
  try:
    with open(path, encoding="utf-8") as file:
      splits = [str(name) for name in json.load(file)["splits"]]
  except (OSError, ValueError, LookupError, TypeError):
    return  # Another file of that name.
  missing = [s for s in splits if not os.path.isdir(f"{directory}/{s}")]
  if missing:
    raise UserError(
      f"is missing: {_SPLITS} lists the splits {', '.join(splits)}",
      file=os.path.join(directory, missing[0]),
      fix="copy the whole directory again",
      code="missing_shard",
    )
