"""Digit images, in three pools that share no image.

Two sources, and never a silent change from one to the other:

- "embedded": 5,000 genuine MNIST digits, 500 a class, that come with this package (`data/NOTICE` says whose they are);
- "mnist": all 70,000, from the four IDX files in a directory of the user's.
"""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import BadInput

SIDE = 28
CLASSES = 10
POOLS = ("train", "validation", "test")
SOURCES = ("embedded", "mnist")

EMBEDDED_PATH = Path(__file__).parent / "data" / "mnist_5k.npz"
EMBEDDED_PER_CLASS = {"train": 400, "validation": 50, "test": 50}
EMBEDDED_IMAGES_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
EMBEDDED_LABELS_SHA256 = "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d"

# MD5 of each file, plain and as the .gz in which it is distributed.
MNIST_MD5 = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
}
MNIST_VALIDATION_IMAGES = 10_000
IDX_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True, eq=False)
class Digits:
    """Digit images by pool ("train", "validation", "test"); no image is in two pools.

    source: "embedded" or "mnist".
    images: uint8 (n, 28, 28) by pool, read-only; ink is 255, paper 0.
    labels: uint8 (n,) by pool, read-only, 0 … 9.
    sha256: of all image bytes, pools in the order above; it names the digits in a problem's identity.
    """

    source: str
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    sha256: str


def load_digits(source: str = "embedded", mnist_dir: str | Path | None = None) -> Digits:
    """Load one source of digits, checked byte for byte.

    "embedded" splits 400/50/50 within each class; its image and label bytes are checked against their SHA-256.
    "mnist" makes the last 10,000 images of the training file the validation pool, and reads from `mnist_dir` the four
    files train/t10k-images-idx3-ubyte and -labels-idx1-ubyte (also spelled with a dot, train-images.idx3-ubyte), plain
    or .gz. Where several stand side by side the plain one is read. The MD5 of the file as it lies there is
    checked, so a .gz that was compressed anew is refused although its content may be right.

    Raises BadInput, naming the path and the expected checksum, for a missing or corrupt file.
    """
    if source not in SOURCES:
        raise BadInput(f"--digit-source {source!r} is not one of {', '.join(SOURCES)}")
    if source == "embedded":
        if mnist_dir is not None:
            raise BadInput("--mnist-dir is only read with --digit-source mnist; give both or neither")
        return _digits(source, *_split_embedded(*_read_embedded(EMBEDDED_PATH)))
    if mnist_dir is None:
        raise BadInput("--digit-source mnist needs --mnist-dir, the directory of the four MNIST IDX files")
    return _digits(source, *_read_mnist(Path(mnist_dir)))


def _digits(source: str, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Digits:
    digest = hashlib.sha256()
    for pool in POOLS:
        images[pool].flags.writeable = labels[pool].flags.writeable = False
        digest.update(images[pool])
    return Digits(source, images, labels, digest.hexdigest())


def _read_embedded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (5000, 28, 28) and labels (5000,), sorted by class."""
    expected = f"expected image bytes of SHA-256 {EMBEDDED_IMAGES_SHA256}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError:
        raise BadInput(f"embedded digits missing: {path} ({expected})") from None
    except Exception as error:  # damaged bytes come out of zip, zlib and the array header as a dozen kinds
        raise BadInput(f"embedded digits unreadable: {path} ({type(error).__name__}; {expected})") from None
    count = CLASSES * sum(EMBEDDED_PER_CLASS.values())
    if images.dtype != np.uint8 or labels.dtype != np.uint8 or images.shape != (count, SIDE, SIDE):
        raise BadInput(f"embedded digits corrupt: {path} holds {images.dtype} {images.shape} ({expected})")
    for part, want in ((images, EMBEDDED_IMAGES_SHA256), (labels, EMBEDDED_LABELS_SHA256)):
        found = hashlib.sha256(np.ascontiguousarray(part)).hexdigest()
        if found != want:
            raise BadInput(f"embedded digits corrupt: {path} has SHA-256 {found}, expected SHA-256 {want}")
    return images, labels


def _split_embedded(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    by_class = images.reshape(CLASSES, -1, SIDE, SIDE), labels.reshape(CLASSES, -1)
    pools = {}, {}
    start = 0
    for pool, count in EMBEDDED_PER_CLASS.items():
        for part, target in zip(by_class, pools, strict=True):
            target[pool] = part[:, start : start + count].reshape(-1, *part.shape[2:])
        start += count
    return pools


def _read_mnist(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    if not os.path.isdir(directory):  # Path.is_dir raises for a name that is too long
        raise BadInput(f"--mnist-dir {directory} is not a directory")
    train_images, train_labels, test_images, test_labels = (_read_idx(directory, stem) for stem in MNIST_MD5)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels):
            raise BadInput(f"--mnist-dir {directory} has {len(images)} images for {len(labels)} labels")
    cut = len(train_images) - MNIST_VALIDATION_IMAGES
    return (
        {"train": train_images[:cut], "validation": train_images[cut:], "test": test_images},
        {"train": train_labels[:cut], "validation": train_labels[cut:], "test": test_labels},
    )


def _read_idx(directory: Path, stem: str) -> np.ndarray:
    """One IDX file of unsigned bytes: images (n, 28, 28) or labels (n,), after its MD5 has been checked."""
    plain_md5, gz_md5 = MNIST_MD5[stem]
    candidates = [
        (directory / (name + suffix), md5)
        for suffix, md5 in (("", plain_md5), (".gz", gz_md5))
        for name in (stem, stem.replace("-idx", ".idx"))
    ]
    path, expected = next(((p, m) for p, m in candidates if p.is_file()), (None, None))
    if path is None:
        raise BadInput(f"--mnist-dir: {directory / stem} is missing, expected MD5 {plain_md5} (or .gz of MD5 {gz_md5})")
    try:
        content = path.read_bytes()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise BadInput(f"--mnist-dir: {path} has MD5 {found}, expected MD5 {expected}")
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"--mnist-dir: {path} cannot be read ({error}), expected MD5 {expected}") from None
    return _parse_idx(path, content, item_shape=(SIDE, SIDE) if "images" in stem else ())


def _parse_idx(path: Path, content: bytes, item_shape: tuple[int, ...]) -> np.ndarray:
    """IDX: two zero bytes, the element type, the number of axes, each as a big-endian uint32, then the elements."""
    axes = 1 + len(item_shape)
    header = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if content[:4] != bytes([0, 0, IDX_UNSIGNED_BYTE, axes]) or shape[1:] != item_shape:
        raise BadInput(f"--mnist-dir: {path} is not an IDX file of unsigned bytes with items of shape {item_shape}")
    if len(content) != header + int(np.prod(shape)):
        raise BadInput(f"--mnist-dir: {path} holds {len(content) - header} bytes of data for the shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
