"""Draw the GIF of a saved run of rank_space_es: the problem and the learning. Reads files only, never trains.

python make_rank_space_es_gif.py                               # the committed results, laptop preset, seed 0
python make_rank_space_es_gif.py --run runs/laptop-seed0 --out /some/folder

What it shows is told in common/animation.py.
"""

from pathlib import Path

from common.animation import Wording, gif_main
from common.errors import run_main

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "laptop-seed0"
WORDING = Wording(
    title="Noise on an adapter’s few activities trains a reservoir to predict what comes next",
    sizes={"N": "hidden_size", "r": "rank", "L": "window", "M": "probes"},
    step="Iteration",
    axis="ES iteration",
)


def main(argv: list[str] | None = None) -> int:
    return gif_main(argv, __doc__.splitlines()[0], COMMITTED, WORDING)


if __name__ == "__main__":
    run_main(main)
