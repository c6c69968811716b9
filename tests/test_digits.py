"""Digits: the pools share nothing, and no damaged, missing or foreign file passes for the real one."""

import gzip
import hashlib
import re

import numpy as np
import pytest

from common import digits as module
from common.digits import EMBEDDED_IMAGES_SHA256, EMBEDDED_PATH, load_digits
from common.errors import BadInput


def fails(*fragments):
    """BadInput whose one-line message holds every fragment, in order."""
    return pytest.raises(BadInput, match="^(?!.*\n).*" + ".*".join(re.escape(str(f)) for f in fragments))


# ---------------------------------------- embedded


@pytest.fixture(scope="module")
def embedded():
    return load_digits()


def test_embedded_pools_are_400_50_50_a_class(embedded):
    assert embedded.source == "embedded"
    for pool, per_class in (("train", 400), ("validation", 50), ("test", 50)):
        images, labels = embedded.images[pool], embedded.labels[pool]
        assert images.shape == (10 * per_class, 28, 28) and images.dtype == np.uint8
        assert np.bincount(labels).tolist() == [per_class] * 10


def test_embedded_pools_are_disjoint_and_hold_every_image_of_the_file(embedded):
    pools = {name: {image.tobytes() for image in images} for name, images in embedded.images.items()}
    assert {name: len(pool) for name, pool in pools.items()} == {"train": 4000, "validation": 500, "test": 500}
    assert len(set.union(*pools.values())) == 5000
    with np.load(EMBEDDED_PATH) as archive:
        stored = {
            image.tobytes(): int(label) for image, label in zip(archive["images"], archive["labels"], strict=True)
        }
    for name in pools:
        for image, label in zip(embedded.images[name], embedded.labels[name], strict=True):
            assert stored[image.tobytes()] == label


def test_embedded_image_bytes_are_those_of_mnist():
    with np.load(EMBEDDED_PATH) as archive:
        assert hashlib.sha256(archive["images"].tobytes()).hexdigest() == EMBEDDED_IMAGES_SHA256
    assert (EMBEDDED_PATH.parent / "NOTICE").read_text().count("CC BY-SA 3.0") == 1


def test_images_look_like_digits(embedded):
    """Ink on black: the border is nearly empty, the middle is not, and a one has less ink than a zero."""
    images, labels = embedded.images["train"].astype(float), embedded.labels["train"]
    assert images[:, 10:18, 10:18].mean() > 20 * images[:, [0, -1]].mean()
    assert images[labels == 1].mean() < 0.6 * images[labels == 0].mean()


def test_sha256_names_all_images_in_the_order_of_the_pools(embedded):
    joined = b"".join(embedded.images[pool].tobytes() for pool in ("train", "validation", "test"))
    assert embedded.sha256 == hashlib.sha256(joined).hexdigest()


def test_digits_cannot_be_changed_by_mistake(embedded):
    with pytest.raises(ValueError, match="read-only"):
        embedded.images["train"][0, 0, 0] = 1


def damaged_copy(path, change):
    with np.load(EMBEDDED_PATH) as archive:
        parts = {name: archive[name].copy() for name in archive.files}
    change(parts)
    np.savez(path, **parts)


def flip_one_pixel(parts):
    parts["images"][2500, 14, 14] ^= 1


def swap_two_labels(parts):
    parts["labels"][[0, 4999]] = parts["labels"][[4999, 0]]


def drop_labels(parts):
    del parts["labels"]


def drop_one_image(parts):
    parts["images"] = parts["images"][:-1]


def widen(parts):
    parts["images"] = parts["images"].astype(np.int64)


@pytest.mark.parametrize("change", [flip_one_pixel, swap_two_labels, drop_labels, drop_one_image, widen])
def test_altered_embedded_file_is_refused(tmp_path, monkeypatch, change):
    path = tmp_path / "altered.npz"
    damaged_copy(path, change)
    monkeypatch.setattr(module, "EMBEDDED_PATH", path)
    expected = module.EMBEDDED_LABELS_SHA256 if change is swap_two_labels else EMBEDDED_IMAGES_SHA256
    with fails(path, expected):
        load_digits("embedded")


@pytest.mark.parametrize("keep", [0, 10, 400_000, -1])
def test_truncated_embedded_file_is_refused(tmp_path, monkeypatch, keep):
    path = tmp_path / "short.npz"
    path.write_bytes(EMBEDDED_PATH.read_bytes()[:keep])
    monkeypatch.setattr(module, "EMBEDDED_PATH", path)
    with fails(path, EMBEDDED_IMAGES_SHA256):
        load_digits()


def test_bytes_damaged_inside_the_embedded_file_are_refused(tmp_path, monkeypatch):
    content = bytearray(EMBEDDED_PATH.read_bytes())
    content[300_000:300_010] = bytes(10)
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    monkeypatch.setattr(module, "EMBEDDED_PATH", path)
    with fails(path, EMBEDDED_IMAGES_SHA256):
        load_digits()


def test_a_plain_array_in_place_of_the_embedded_archive_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "array.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros((5000, 28, 28), np.uint8))
    monkeypatch.setattr(module, "EMBEDDED_PATH", path)
    with fails(path, EMBEDDED_IMAGES_SHA256):
        load_digits()


def test_missing_embedded_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EMBEDDED_PATH", tmp_path / "none.npz")
    with fails("missing", tmp_path / "none.npz", EMBEDDED_IMAGES_SHA256):
        load_digits()


def test_unknown_source_and_a_directory_that_would_be_ignored_are_refused(tmp_path):
    with fails("--digit-source", "fashion", "embedded", "mnist"):
        load_digits("fashion")
    with fails("--mnist-dir", "--digit-source mnist"):
        load_digits("embedded", tmp_path)


# ---------------------------------------- full MNIST

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SHAPES = ((30, 28, 28), (30,), (7, 28, 28), (7,))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(monkeypatch):
    """Four small IDX files in MNIST's place: their arrays, their bytes by stem, and the checksums patched to match."""
    generator = np.random.default_rng(0)
    arrays = {
        stem: generator.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8)
        for stem, shape in zip(STEMS, SHAPES, strict=True)
    }
    files = {stem: idx(array) for stem, array in arrays.items()}
    checksums = {}
    for stem, content in files.items():
        compressed = gzip.compress(content, mtime=0)
        checksums[stem] = hashlib.md5(content).hexdigest(), hashlib.md5(compressed).hexdigest()
    monkeypatch.setattr(module, "MNIST_MD5", checksums)
    monkeypatch.setattr(module, "MNIST_VALIDATION_IMAGES", 10)
    return arrays, files


def write_mnist(directory, files, spelling, suffix):
    for stem, content in files.items():
        name = stem.replace("-idx", spelling + "idx") + suffix
        (directory / name).write_bytes(gzip.compress(content, mtime=0) if suffix else content)


@pytest.mark.parametrize("spelling", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_in_every_spelling(tmp_path, small_mnist, spelling, suffix):
    arrays, files = small_mnist
    write_mnist(tmp_path, files, spelling, suffix)
    loaded = load_digits("mnist", tmp_path)
    assert loaded.source == "mnist"
    for part, kind in ((loaded.images, "images-idx3"), (loaded.labels, "labels-idx1")):
        train = arrays[f"train-{kind}-ubyte"]
        np.testing.assert_array_equal(part["train"], train[:20])
        np.testing.assert_array_equal(part["validation"], train[20:])
        np.testing.assert_array_equal(part["test"], arrays[f"t10k-{kind}-ubyte"])


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("stem", STEMS)
def test_a_changed_mnist_file_is_refused(tmp_path, small_mnist, stem, suffix):
    write_mnist(tmp_path, small_mnist[1], "-", suffix)
    path = tmp_path / (stem + suffix)
    content = bytearray(path.read_bytes())
    content[-12] ^= 1
    path.write_bytes(content)
    with fails(path, "expected", module.MNIST_MD5[stem][bool(suffix)]):
        load_digits("mnist", tmp_path)


def test_mnist_compressed_anew_is_refused(tmp_path, small_mnist):
    write_mnist(tmp_path, small_mnist[1], "-", ".gz")
    path = tmp_path / (STEMS[0] + ".gz")
    path.write_bytes(gzip.compress(small_mnist[1][STEMS[0]], mtime=1))
    with fails(path, "expected", module.MNIST_MD5[STEMS[0]][1]):
        load_digits("mnist", tmp_path)


@pytest.mark.parametrize("stem", STEMS)
def test_a_missing_mnist_file_is_named_with_its_checksums(tmp_path, small_mnist, stem):
    write_mnist(tmp_path, {k: v for k, v in small_mnist[1].items() if k != stem}, "-", "")
    with fails("--mnist-dir", tmp_path / stem, *module.MNIST_MD5[stem]):
        load_digits("mnist", tmp_path)


def test_mnist_never_falls_back_to_the_embedded_digits(tmp_path):
    with fails("--mnist-dir"):
        load_digits("mnist")
    with fails("--mnist-dir", tmp_path / "nowhere"):
        load_digits("mnist", tmp_path / "nowhere")
    with fails("--mnist-dir", tmp_path / STEMS[0]):
        load_digits("mnist", tmp_path)


def test_real_mnist_checksums_refuse_files_that_are_not_mnist(tmp_path):
    (tmp_path / STEMS[0]).write_bytes(idx(np.zeros((60, 28, 28), np.uint8)))
    with fails(tmp_path / STEMS[0], "expected MD5 6bbc9ace898e44ae57da46a324031adb"):
        load_digits("mnist", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2]),  # labels where images belong
        bytes([0, 0, 13, 3]) + idx(np.zeros((2, 28, 28), np.uint8))[4:],  # elements that are floats
        idx(np.zeros((2, 28, 27), np.uint8)),
        idx(np.zeros((2, 28, 28), np.uint8))[:-1],
        idx(np.zeros((2, 28, 28), np.uint8)) + b"\0",
        idx(np.zeros((29, 28, 28), np.uint8)),  # fewer images than labels
    ],
)
def test_a_file_that_is_not_such_an_idx_file_is_refused_even_with_the_right_checksum(tmp_path, small_mnist, content):
    write_mnist(tmp_path, small_mnist[1] | {STEMS[0]: content}, "-", "")
    module.MNIST_MD5[STEMS[0]] = hashlib.md5(content).hexdigest(), ""
    with fails("--mnist-dir", tmp_path):
        load_digits("mnist", tmp_path)


def test_a_gz_that_does_not_decompress_is_refused_even_with_the_right_checksum(tmp_path, small_mnist):
    write_mnist(tmp_path, small_mnist[1], "-", ".gz")
    path = tmp_path / (STEMS[0] + ".gz")
    path.write_bytes(path.read_bytes()[:-20])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    module.MNIST_MD5[STEMS[0]] = "", found
    with fails(path, found):
        load_digits("mnist", tmp_path)
