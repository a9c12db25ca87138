"""Where things live; the environment decides, then the project folder."""

from __future__ import annotations

import os
from pathlib import Path


def runs_folder() -> Path:
    """``$ATTNRES_RUNS``, else ``runs`` in the nearest parent that holds ``runs/mlflow.db`` or
    ``pyproject.toml``, else in the working directory.
    """
    if folder := os.environ.get("ATTNRES_RUNS"):
        return Path(folder).absolute()
    here = Path.cwd()
    for parent in (here, *here.parents):
        if (parent / "runs" / "mlflow.db").exists() or (parent / "pyproject.toml").exists():
            return parent / "runs"
    return here / "runs"


def artifacts_folder() -> Path:
    """Where the embedded MLflow store keeps its copies of files."""
    return runs_folder() / "artifacts"


def cache_folder() -> Path:
    """``$ATTNRES_CACHE``, else ``attnres-lab`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ATTNRES_CACHE") or Path(base) / "attnres-lab").absolute()
