"""The packages of the extra `labeling`; nothing here needs them."""

from __future__ import annotations

import importlib

from instructgpt_jax.errors import UserError

PACKAGES = ("alembic", "krippendorff", "markdown_it", "sqlalchemy",
            "starlette", "uvicorn")  # fmt: skip


def check_packages() -> None:
  """Refuses to run without the packages of the extra `labeling`.

  Raises:
    UserError: a package is not installed.
  """
  for package in PACKAGES:
    try:
      importlib.import_module(package)
    except ImportError as error:
      raise UserError(
        f"labeling needs the package {package.replace('_', '-')}, which is not"
        " installed",
        fix="pip install -e '.[labeling]', or make label, which installs it",
        code="missing_package",
      ) from error
