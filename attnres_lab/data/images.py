"""Labelled images, read whole into memory: IDX files, folders of image files, ``datasets``.

Shapes: N images, C channels, S size.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attnres_lab.errors import UserError

Split = Literal["train", "val"]
#: Names of the files as MNIST has them, for images and for labels, with or without .gz.
IDX_NAMES = {"train": "train-{}-idx{}-ubyte", "val": "t10k-{}-idx{}-ubyte"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
UNSIGNED_BYTE = 8  # type code of an IDX file


@dataclass(frozen=True)
class ImageSourceConfig:
    """Where images come from.

    ``idx``: a folder with the four files of MNIST and its like. ``folder``: a folder with ``train``
    and ``val`` in it, each with a folder of images per class. ``huggingface``: a dataset by name
    through ``datasets`` (the extra ``huggingface``).
    """

    name: Literal["idx", "folder", "huggingface"] = "idx"
    path: str | None = "/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist
    dataset: str | None = None  # huggingface only, as are the next five
    subset: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = ("train", "test")  # to train and to validate on
    image_field: str = "image"
    label_field: str = "label"

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        if self.name == "huggingface" and not self.dataset:
            raise ValueError(
                "task.source.dataset: task.source.name: huggingface needs the name of a dataset"
            )
        if self.name != "huggingface" and (self.dataset or not self.path):
            raise ValueError(
                f"task.source.path: task.source.name: {self.name} needs a folder, and no dataset"
            )
        if len(self.splits) != 2:
            raise ValueError(
                "task.source.splits: two are expected, to train and to validate on, got "
                f"{list(self.splits)}"
            )


@dataclass(frozen=True)
class ImageSet:
    """Images [N, C, S, S] of bytes and labels [N] of both splits."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the content, wherever it lies."""
        digest = hashlib.sha256()
        for split in IDX_NAMES:
            digest.update(str(self.images[split].shape).encode())
            digest.update(np.ascontiguousarray(self.images[split]).data)
            digest.update(self.labels[split].astype("<i8").data)
        return digest.hexdigest()[:32]

    @property
    def manifest(self) -> dict[str, Any]:
        """What it was made of and holds."""
        counts = {
            split: {
                "images": len(labels),
                "shape": list(self.images[split].shape[1:]),
                "labels": np.bincount(labels).tolist(),
            }
            for split, labels in self.labels.items()
        }
        return {"fingerprint": self.fingerprint, "source": self.source, **counts}

    def check(self, size: int, channels: int, classes: int) -> None:
        """Raises UserError for images of another shape and labels that are no class."""
        for split, images in self.images.items():
            if images.shape[1:] != (channels, size, size):
                c, rows, columns = images.shape[1:]
                raise UserError(
                    f"task.image.size: {split} images are {rows} x {columns} with {c} channels, "
                    f"not {size} x {size} with {channels}; set task.image.size and "
                    "task.image.channels"
                )
            labels = self.labels[split]
            if len(wrong := np.flatnonzero((labels < 0) | (labels >= classes))):
                raise UserError(
                    f"task.image.classes: label {labels[wrong[0]]} of {split} image {wrong[0]} is "
                    f"not one of 0 to {classes - 1}; set task.image.classes"
                )


def load_images(config: ImageSourceConfig) -> ImageSet:
    """All images of a source. Raises UserError, with the place, for what cannot be read."""
    readers = {"idx": _idx_split, "folder": _folder_split, "huggingface": _hub_split}
    pairs = {split: readers[config.name](config, split) for split in IDX_NAMES}
    for split, (images, labels) in pairs.items():
        if not len(images):
            raise UserError(f"task.source: {split}: there are no images")
        if len(images) != len(labels):
            raise UserError(f"task.source: {split}: {len(images)} images, {len(labels)} labels")
    return ImageSet(
        {split: images for split, (images, _) in pairs.items()},
        {split: labels.astype(np.int64) for split, (_, labels) in pairs.items()},
        vars(config),
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in an IDX file (Y. LeCun's format of MNIST), plain or .gz.

    A header of two zeros, the type (8: unsigned bytes) and the number of dimensions, then the
    dimensions as 32-bit big-endian numbers, then the values. Raises UserError for what is none, is
    of another type, or is cut short.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if len(content) < 4 or content[:2] != b"\0\0":
        raise UserError(f"{path}: not an IDX file")
    if content[2] != UNSIGNED_BYTE:
        raise UserError(f"{path}: IDX values of type {content[2]}; unsigned bytes (8) are expected")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path}: its header says {' x '.join(map(str, shape))} values, and {len(content)} "
            "bytes do not hold those; the file is corrupt"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_split(c: ImageSourceConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for kind, dimensions in (("images", 3), ("labels", 1)):
        name = IDX_NAMES[split].format(kind, dimensions)
        folder = Path(c.path or "").expanduser()
        found = [folder / f"{name}{suffix}" for suffix in ("", ".gz")]
        path = next((path for path in found if path.exists()), None)
        if path is None:
            raise UserError(
                f"task.source.path: {folder} holds no {name}[.gz]; on Debian, apt install "
                "dataset-fashion-mnist, or give the folder of such files"
            )
        array = read_idx(path)
        if array.ndim != dimensions:
            raise UserError(f"{path}: {array.ndim} dimensions, {kind} have {dimensions}")
        arrays.append(array)
    return arrays[0][:, None], arrays[1]


def _folder_split(c: ImageSourceConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes in the order of their names; both splits have the same."""
    import PIL
    from PIL import Image

    root = Path(c.path or "").expanduser()
    names = sorted(p.name for p in (root / "train").glob("*") if p.is_dir())
    other = sorted(p.name for p in (root / split).glob("*") if p.is_dir())
    if not names or other != names:
        raise UserError(
            f"task.source.path: {root / split} has the classes {other}, {root / 'train'} has "
            f"{names}; a folder of images per class is expected in both"
        )
    pairs = []
    for label, name in enumerate(names):
        for path in sorted((root / split / name).iterdir()):
            if path.suffix.lower() in SUFFIXES:
                try:
                    with Image.open(path) as image:
                        pairs.append((str(path), pixels(image), label))
                except (OSError, PIL.UnidentifiedImageError) as error:
                    raise UserError(f"{path}: not readable as an image ({error})") from None
    return _stack(pairs)


def _hub_split(c: ImageSourceConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "task.source.name: 'huggingface' needs an extra: pip install 'attnres-lab[huggingface]'"
        ) from None
    name = c.splits[list(IDX_NAMES).index(split)]
    try:
        rows = datasets.load_dataset(c.dataset, c.subset, split=name, revision=c.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"task.source.dataset: {c.dataset}: cannot be read ({str(error).splitlines()[0]})"
        ) from None
    for key in (c.image_field, c.label_field):
        if key not in rows.column_names:
            raise UserError(
                f"task.source: {c.dataset} has no column '{key}'; it has "
                f"{', '.join(rows.column_names)}"
            )
    return _stack(
        (f"{c.dataset}: {name} row {number}", pixels(row[c.image_field]), row[c.label_field])
        for number, row in enumerate(rows)
    )


def pixels(image: Any) -> np.ndarray:
    """Rows x columns [x channels] of an image of PIL's, or of what is one as it is; the colours of
    a palette in place of their numbers.
    """
    palette = getattr(image, "mode", "").startswith("P")
    return np.asarray(image.convert("RGB") if palette else image)


def _stack(pairs: Iterable[tuple[str, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Images of one shape, [S, S] or [S, S, C] each, to [N, C, S, S], and their labels."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for where, image, label in pairs:
        image = image[..., None] if image.ndim == 2 else image
        if image.ndim != 3 or image.dtype != np.uint8:
            raise UserError(f"{where}: an image of bytes is expected, rows x columns [x channels]")
        if images and image.shape != images[0].shape:
            sizes = (" x ".join(map(str, shape)) for shape in (image.shape, images[0].shape))
            raise UserError(
                f"{where}: {next(sizes)}, and the first image is {next(sizes)}; bring all images "
                "to one size"
            )
        images.append(image)
        labels.append(int(label))
    stacked = np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8)
    return stacked.transpose(0, 3, 1, 2), np.array(labels, np.int64)
