"""Sources of images: what they read, and what they say of files that are not as they should be."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import idx_bytes, idx_folder, squares
from PIL import Image

from attnres_lab.data import ImageSourceConfig, load_images
from attnres_lab.data.images import pixels, read_idx
from attnres_lab.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def test_fashion_mnist_has_its_published_shapes_and_counts() -> None:
    """60,000 and 10,000 images of 28 x 28, ten classes equally often (arXiv 1708.07747)."""
    if not FASHION.exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    found = load_images(ImageSourceConfig())
    found.check(28, 1, 10)
    assert found.images["train"].shape == (60_000, 1, 28, 28)
    assert found.images["val"].shape == (10_000, 1, 28, 28)
    assert np.bincount(found.labels["train"]).tolist() == [6000] * 10
    assert np.bincount(found.labels["val"]).tolist() == [1000] * 10
    assert found.images["train"].mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # widely quoted


def test_idx_files_plain_or_packed_hold_what_was_written(tmp_path: Path) -> None:
    found = load_images(ImageSourceConfig(path=str(idx_folder(tmp_path))))
    images, labels = squares(64)
    assert np.array_equal(found.images["train"][:, 0], images)
    assert np.array_equal(found.labels["train"], labels)
    assert found.manifest["val"]["images"] == 32
    again = load_images(ImageSourceConfig(path=str(idx_folder(tmp_path / "elsewhere"))))
    assert again.fingerprint == found.fingerprint
    other = load_images(ImageSourceConfig(path=str(idx_folder(tmp_path, val=31))))
    assert other.fingerprint != found.fingerprint


BAD_IDX: list[tuple[bytes, str]] = [
    (b"", "not an IDX file"),
    (b"\x89PNG....", "not an IDX file"),
    (idx_bytes(np.zeros((2, 3), np.uint8))[:-1], "2 x 3 values, and 17 bytes do not hold those"),
    (idx_bytes(np.zeros((2, 3), np.uint8)) + b"x", "the file is corrupt"),
    (b"\0\0\x08\x03\0\0", "its header says"),
    (b"\0\0\x0d\x01\0\0\0\0", "IDX values of type 13; unsigned bytes"),
]


@pytest.mark.parametrize(("content", "message"), BAD_IDX)
def test_a_corrupt_idx_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(tmp_path / "x-ubyte")
    assert str(caught.value).startswith(f"{tmp_path}/x-ubyte: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\x1f\x8bno", gzip.compress(b"\0" * 999, mtime=0)[:-9], b""])
def test_a_corrupt_packed_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.gz: (cannot be read|not an IDX file)"):
        read_idx(tmp_path / "x.gz")


def spoil_labels(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(32, 4, np.uint8)))


def shorten_labels(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.zeros(31, np.uint8)))
    )


def swap(folder: Path) -> None:
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    (folder / "train-images-idx3-ubyte").write_bytes(labels)


def lose(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").unlink()


BAD_SETS: list[tuple[Callable[[Path], None], str]] = [
    (spoil_labels, r"task\.image\.classes: label 4 of val image 0 is not one of 0 to 3"),
    (shorten_labels, r"val: 32 images, 31 labels"),
    (swap, r"train-images-idx3-ubyte: 1 dimensions, images have 3"),
    (lose, r"task\.source\.path: .* holds no t10k-images-idx3-ubyte\[\.gz\]; on Debian, apt"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_SETS)
def test_a_set_that_does_not_fit_together(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    spoil(idx_folder(tmp_path))
    with pytest.raises(UserError, match=message):
        load_images(ImageSourceConfig(path=str(tmp_path))).check(8, 1, 4)


def test_images_of_another_size_than_the_config_says(tmp_path: Path) -> None:
    found = load_images(ImageSourceConfig(path=str(idx_folder(tmp_path))))
    with pytest.raises(UserError, match=r"train images are 8 x 8 with 1 channels, not 28 x 28"):
        found.check(28, 1, 4)


def image_folder(root: Path) -> ImageSourceConfig:
    """Two classes of two RGB images in each split."""
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.full((6, 6, 3), 100 * label + index, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
            (root / split / name / "notes.txt").write_text("no image")
    return ImageSourceConfig("folder", str(root))


def test_a_folder_of_images_per_class(tmp_path: Path) -> None:
    found = load_images(image_folder(tmp_path))
    found.check(6, 3, 2)
    assert found.labels["train"].tolist() == [0, 0, 1, 1]
    assert found.images["val"][:, :, 0, 0].tolist() == [[0] * 3, [1] * 3, [100] * 3, [101] * 3]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_an_image_with_a_palette_has_its_colours(suffix: str, tmp_path: Path) -> None:
    """Two of them, in an order that is not that of their numbers."""
    config = image_folder(tmp_path)
    image = Image.new("P", (6, 6), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    for path in tmp_path.glob("*/*/0.png"):
        path.unlink()
        image.save(path.with_suffix(suffix))
    found = load_images(config)
    found.check(6, 3, 2)
    assert found.images["train"][0, :, 5, 5].tolist() == [200, 100, 50]
    assert np.array_equal(pixels(image), np.full((6, 6, 3), [200, 100, 50]))


def test_a_folder_that_is_not_as_it_should_be(tmp_path: Path) -> None:
    config = image_folder(tmp_path)
    odd = tmp_path / "val" / "dog" / "2.png"
    Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(odd)
    with pytest.raises(UserError, match=r"2\.png: 6 x 7 x 3, and the first image is 6 x 6 x 3"):
        load_images(config)
    odd.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.png: not readable as an image"):
        load_images(config)
    odd.unlink()
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(UserError, match=r"val has the classes \['cat', 'dog', 'emu'\]"):
        load_images(config)
    with pytest.raises(UserError, match=r"nowhere/train has the classes \[\]"):
        load_images(ImageSourceConfig("folder", str(tmp_path / "nowhere")))


def test_a_dataset_with_an_image_column(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra huggingface")
    images, labels = squares(6)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)}
    )
    rows = {"img": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    held = datasets.Dataset.from_dict(rows, features=features)
    asked = []

    def load_dataset(*words: object, **options: object) -> object:
        asked.append((*words, options["split"]))
        return held

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = ImageSourceConfig("huggingface", dataset="a/b", image_field="img")
    found = load_images(config)
    assert asked == [("a/b", None, "train"), ("a/b", None, "test")]
    assert np.array_equal(found.images["val"][:, 0], images)
    assert np.array_equal(found.labels["val"], labels)
    with pytest.raises(UserError, match=r"a/b has no column 'image'; it has img, label"):
        load_images(ImageSourceConfig("huggingface", dataset="a/b"))
