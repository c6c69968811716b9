"""A new experiment from template/, and the figures of those that are there."""

import importlib.util
import keyword
import re
import shutil
from pathlib import Path

from common.contract import run_python
from common.errors import BadInput
from common.results import ROOT, STUDY, is_study, module_of, publish, read_result
from common.results_page import hardware, write_results
from common.text import duration

LONGEST_NAME = 100


def draw_figures(root: Path, slug: str) -> None:
    """Redraw the viz/*.png and GIF of a stub from its committed results, of a study from its measurements. Raises BadInput where a
    script fails."""
    for script in (f"visualize_{module_of(slug)}.py", f"make_{module_of(slug)}_gif.py"):
        if run_python([script], root / slug, root).returncode:
            raise BadInput(f"{slug}/{script} failed")


def check_name(root: Path, name: str) -> None:
    """Raises BadInput unless `name` can become an experiment: kebab case, unused, no clash with a Python module."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise BadInput(f"NAME {name!r}: use small letters and digits, joined by single hyphens, as in my-idea")
    if len(name) > LONGEST_NAME:
        raise BadInput(f"NAME {name}: has {len(name)} characters; at most {LONGEST_NAME} may be")
    if is_study(name):
        raise BadInput(
            f"NAME {name}: {STUDY}… is what studies are called, and this makes an experiment; choose another"
        )
    if (root / name).exists():
        raise BadInput(f"NAME {name}: {root / name} exists already")
    module = module_of(name)
    if keyword.iskeyword(module) or importlib.util.find_spec(module) is not None:
        raise BadInput(f"NAME {name}: {module} is a name of Python or of an installed package; choose another")


def _fill(text: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        text = text.replace(old, new)
    return text


def new(name: str, root: Path = ROOT) -> Path:
    """Copy template/ to NAME/, run it at its smoke preset, publish, draw: an experiment that keeps the contract.

    Returns its folder; removes it again where a step fails. Raises BadInput for a bad name or a failing step.
    """
    check_name(root, name)
    folder, module, template = root / name, module_of(name), root / "template"
    title = name.replace("-", " ").capitalize()
    names = {"experiment_slug": module, "experiment-slug": name, "Experiment title": title}
    try:
        folder.mkdir()
        for source in template.glob("*.*"):
            text = _fill(source.read_text(encoding="utf-8"), names)
            (folder / _fill(source.name, names)).write_text(text, encoding="utf-8")
        if run_python([f"{module}.py", "--seed", "0", "--preset", "smoke"], folder, root).returncode:
            raise BadInput(f"{name}: the smoke run failed")
        publish(folder / "runs" / "smoke-seed0", root)
        result = read_result(folder / "results" / "smoke-seed0.json")
        measured = {
            "{test_mse}": f"{result['test_mse']:.4f}",
            "{ridge_test_mse}": f"{result['ridge_test_mse']:.4f}",
            "{wallclock}": duration(result["wallclock_s"]),
            "{hardware}": hardware(result),
            "{reproduces}": result["reproduces"],
        }
        readme = folder / "README.md"
        readme.write_text(_fill(readme.read_text(encoding="utf-8"), measured), encoding="utf-8")
        draw_figures(root, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_results(root)
    return folder
