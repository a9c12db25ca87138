"""The run files, studies and notebooks that come with the package, found by name anywhere. The
folders here are links to those at the top of the repository; a wheel holds copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attnres_lab.errors import UserError, nearest

HERE = Path(__file__).parent
Kind = Literal["experiments", "sweeps"]


def find(path: Path | str, kind: Kind) -> Path:
    """``path`` where it is a file; else the file so called (``tiny``, ``experiments/tiny.yaml``) in
    the folder ``kind`` of the working directory, or among the shipped ones. Raises UserError.
    """
    path = Path(path)
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    for home in (Path(kind), HERE / kind) if path.parent in (Path(), Path(kind)) else ():
        if (file := home / f"{name}.yaml").is_file():
            return file
    names = {file.stem for home in (Path(kind), HERE / kind) for file in home.glob("*.yaml")}
    what = kind.removesuffix("s")
    there = "a folder, not a file" if path.is_dir() else "no such file"
    raise UserError(f"{path}: {there}, and no {what} is called so{nearest(name, names)}")
