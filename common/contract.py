"""The contract of SPEC.md, as far as a machine can check it. Every check returns a list of problems, one line each.

Experiments and studies are never imported here: they are asked in a process of their own.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from itertools import dropwhile
from pathlib import Path

from common.errors import BadInput
from common.results import (
    LARGEST_FILE,
    ROOT,
    changed_settings,
    curricula,
    is_study,
    load_results,
    module_of,
    read_curriculum,
    run_name,
    stubs,
    studies,
)
from common.results_page import stale_files
from common.study_data import Study, read_study

LAPTOP_SECONDS = 300
SECTIONS = [
    "Problem",
    "Files",
    "Running",
    "Results",
    "Visualizations",
    "Deviations from the original",
    "Open questions",
]
WEIGHTS = "weights or states"
FIGURE_KINDS = {
    "training curves": "training|curve",
    WEIGHTS: "weight|spectr|adapter|singular|hidden|state",
}


def check(root: Path = ROOT, slugs: list[str] | None = None) -> list[str]:
    """Problems of the given stubs and studies, or of the whole repository. Raises BadInput for one that does not exist."""
    for slug in slugs or []:
        require_known(root, slug)
    problems = [p for slug in slugs or known_slugs(root) for look in checks_of(slug) for p in look(root, slug)]
    return problems if slugs else problems + check_repository(root)


def known_slugs(root: Path) -> list[str]:
    """All stubs, then all studies, which start them."""
    return stubs(root) + studies(root)


def require_known(root: Path, slug: str) -> None:
    """Raises BadInput for a slug that is neither a stub nor a study."""
    if slug not in known_slugs(root):
        raise BadInput(f"{slug}: no such stub or study; there are {', '.join(known_slugs(root)) or 'none'}")


def run_python(arguments: list, folder: Path, root: Path, **options) -> subprocess.CompletedProcess:
    """Run a Python program in `folder` with this repository's `common` in front of any installed one."""
    path = os.pathsep.join(filter(None, [str(root.resolve()), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "Agg"}
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, env=environment, **options)


# --- Files -----------------------------------------------------------------------------------------------------------


def check_files(root: Path, slug: str) -> list[str]:
    """Files that the folder of a stub or a study must hold, and that images are what their names say."""
    folder, module = root / slug, module_of(slug)
    kept = "measurements" if is_study(slug) else "results"
    wanted = [f"{module}.py", f"visualize_{module}.py", f"make_{module}_gif.py", f"{module}.gif", "README.md"]
    problems = [f"{slug}: {name} is missing" for name in wanted if not (folder / name).is_file()]
    if not list((folder / kept).glob("*.json")):
        problems.append(f"{slug}: {kept}/ holds no *.json")
    pngs = sorted((folder / "viz").glob("*.png"))
    for kind, pattern in FIGURE_KINDS.items():
        if kind == WEIGHTS and is_study(slug) and not _varies_the_rank(root, slug):
            continue
        if not any(re.search(pattern, p.name) for p in pngs):
            problems.append(f"{slug}: viz/ holds no PNG of {kind} (a name with one of {pattern.replace('|', ', ')})")
    return problems + [
        f"{slug}: {path.name} {fault}" for path in [*pngs, *folder.glob("*.gif")] if (fault := _fault(path))
    ]


def _varies_the_rank(root: Path, slug: str) -> bool:
    """Whether a study has measured adapters of several ranks."""
    sweeps = [sweep for study in _measured(root, slug)[0].values() for sweep in study.content["sweeps"].values()]
    return any(len(sweep["varied"].get("rank", [])) > 1 for sweep in sweeps)


def _measured(root: Path, slug: str) -> tuple[dict[str, Study], list[str]]:
    """A study's measurements by their files' names, and what is wrong with those that cannot be read or lie elsewhere than they say."""
    measured, problems = {}, []
    for path in sorted((root / slug / "measurements").glob("*.json")):
        try:
            study = read_study(path, slug)
        except BadInput as error:
            problems.append(str(error))
            continue
        if study.preset == path.stem:
            measured[path.name] = study
        else:
            problems.append(f"{path}: key 'preset' asks for the name {study.preset}.json")
    return measured, problems


def _fault(path: Path) -> str:
    """What is wrong with an image; empty where nothing is."""
    from PIL import Image

    wanted = path.suffix[1:].upper()
    try:
        with Image.open(path) as image:
            if image.format != wanted:
                return f"is not a {wanted}"
            if wanted == "GIF" and image.n_frames < 2:
                return "does not move (one frame)"
    except OSError:
        return f"is not a {wanted}"
    return "is over 2 MB" if path.stat().st_size > LARGEST_FILE else ""


def check_sizes(root: Path) -> list[str]:
    """No file under version control over 2 MB (nothing to say outside a git work tree)."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    paths = [root / name for name in listing.stdout.split("\0") if name] if listing.returncode == 0 else []
    return [f"{p.relative_to(root)}: over 2 MB" for p in paths if p.is_file() and p.stat().st_size > LARGEST_FILE]


# --- README and results ----------------------------------------------------------------------------------------------


def sections_of(text: str) -> list[tuple[str, str]]:
    """(heading, body) of a README: first its header (all before the first `## `, heading ""), then each section."""
    sections, fenced = [("", [])], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            sections.append((line[3:].strip(), []))
        else:
            sections[-1][1].append(line)
    return [(heading, "\n".join(body).strip()) for heading, body in sections]


def check_readme(root: Path, slug: str) -> list[str]:
    """The eight sections in order and none empty; title, citation and GIF in the header; links lead somewhere."""
    path, gif = root / slug / "README.md", f"{module_of(slug)}.gif"
    if not path.is_file():
        return []  # said by check_files
    (_, header), *rest = sections_of(path.read_text(encoding="utf-8"))
    problems = []
    if not re.match(r"# \S", header):
        problems.append("must begin with a title, '# …'")
    if not re.search(r"\b(19|20)\d\d\b", header):
        problems.append("cites nothing (no year) above its first section")
    if not re.search(rf"!\[[^\]]+\]\({gif}\)", header):
        problems.append(f"does not show {gif} (with a text for those who cannot see it) in its header")
    if [heading for heading, _ in rest] != SECTIONS:
        problems.append(f"must have exactly the sections {SECTIONS}, has {[heading for heading, _ in rest]}")
    problems += [f"section '{heading}' is empty" for heading, body in rest if not body]
    return [f"{slug}: README.md {problem}" for problem in problems] + check_links(root, path)


def check_links(root: Path, path: Path) -> list[str]:
    """Relative links and images of a Markdown file that lead to nothing."""
    text = re.sub(r"^```.*?^```[^\n]*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if not (path.parent / target).exists()]
    return [f"{path.relative_to(root)}: links to {target}, which does not exist" for target in missing]


def check_results(root: Path, slug: str) -> list[str]:
    """Schema of the results, the laptop preset's time, and that README §Results prints the means of the files."""
    try:
        results = [r for r in load_results(root) if r["stub"] == slug]
    except BadInput as error:
        return [str(error)]
    path = root / slug / "README.md"
    section = dict(sections_of(path.read_text(encoding="utf-8"))).get("Results", "") if path.is_file() else ""
    problems, groups = [], defaultdict(list)
    for result in results:
        groups[result["problem_id"], result["preset"]].append(result["test_mse"])
        seconds, on_cpu = result["wallclock_s"], result["environment"]["device"] == "cpu"
        if result["preset"] == "laptop" and on_cpu and seconds > LAPTOP_SECONDS:
            problems.append(
                f"{slug}: {run_name(result)} took {seconds:.0f} s; the laptop preset has {LAPTOP_SECONDS} s"
            )
    for (_, preset), errors in groups.items():
        mean = f"{statistics.fmean(errors):.4f}"
        if mean not in section:
            problems.append(f"{slug}: README.md §Results does not print {mean}, the mean test MSE of preset {preset}")
    return problems


def check_measurements(root: Path, slug: str) -> list[str]:
    """Schema of a study's measurements, and that README §Results prints every line of the tables that its script makes of them."""
    measured, problems = _measured(root, slug)
    path = root / slug / "README.md"
    section = dict(sections_of(path.read_text(encoding="utf-8"))).get("Results", "") if path.is_file() else ""
    for name, study in measured.items():
        words = [f"{module_of(slug)}.py", "--tables", "--preset", study.preset]
        done = run_python(words, root / slug, root, capture_output=True, text=True)
        if done.returncode:
            problems.append(f"{slug}: `python {shlex.join(words)}`: {done.stderr.strip()[-200:]}")
        lost = [line for line in done.stdout.splitlines() if line.startswith("|") and line not in section.splitlines()]
        problems += [f"{slug}: README.md §Results does not print, of measurements/{name}: {line}" for line in lost]
    return problems


def check_presets(root: Path, slug: str) -> list[str]:
    """That every committed result and curriculum ran with its preset as the script has it now: `--preset` and `--seed` alone repeat it."""
    try:
        results = [r for r in load_results(root) if r["stub"] == slug]
    except BadInput:
        return []  # said by check_results
    problems, found = [], [(run_name(result), result) for result in results]
    for path in curricula(root / slug):
        try:
            found.append((f"measurements/{path.name}", read_curriculum(path)))
        except BadInput as error:
            problems.append(str(error))
    answers = ask(root, slug, [["--preset", r["preset"], "--seed", str(r["seed"])] for _, r in found])
    for (name, result), (refusal, config) in zip(found, answers):
        changed = [refusal] if config is None else changed_settings(result["config"], config)
        if changed:
            problems.append(f"{slug}: {name} is not what its preset runs now: {', '.join(changed)}")
    return problems


_PROBE = """
import dataclasses, importlib, json, sys
module, commands = json.load(sys.stdin)
sys.path.insert(0, "")
module = importlib.import_module(module)
answers = []
for arguments in commands:
    try:
        config, options = module.parse_arguments(arguments)
        answers.append(["", dataclasses.asdict(config)])
    except SystemExit as exit:
        answers.append(["" if not exit.code else f"exit code {exit.code}", None])
    except ValueError as error:
        answers.append([str(error), None])
print(json.dumps(answers))
"""


def ask(root: Path, slug: str, commands: list[list[str]]) -> list[tuple[str, dict | None]]:
    """(why refused or "", configuration or None) of a stub's `parse_arguments` for each list of arguments."""
    if not commands:
        return []
    asked = json.dumps([module_of(slug), commands])
    answer = run_python(["-c", _PROBE], root / slug, root, input=asked, capture_output=True, text=True)
    if answer.returncode:
        return [(f"cannot be asked: {answer.stderr.strip()[-200:]}", None)] * len(commands)
    return [tuple(pair) for pair in json.loads(answer.stdout.splitlines()[-1])]


# --- Code ------------------------------------------------------------------------------------------------------------


def _trees(folder: Path) -> list[tuple[Path, ast.Module]]:
    return [(p, ast.parse(p.read_text(encoding="utf-8"), str(p))) for p in sorted(folder.glob("*.py"))]


def _imported(tree: ast.Module) -> set[str]:
    """First parts of the names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def check_code(root: Path, slug: str) -> list[str]:
    """Nothing left undone in the code of a stub or a study, no marker of work put off, and no import of another one."""
    foreign = {p.stem: other for other in known_slugs(root) if other != slug for p in (root / other).glob("*.py")}
    own = {p.stem for p in (root / slug).glob("*.py")}
    problems = []
    for path, tree in _trees(root / slug):
        name = f"{slug}/{path.name}"
        for word in re.findall(r"\b(TODO|FIXME|NotImplementedError)\b", path.read_text(encoding="utf-8")):
            problems.append(f"{name}: holds {word}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
                if all(isinstance(n, ast.Pass) for n in body):
                    problems.append(f"{name}: function {node.name} is empty")
        problems += [f"{name}: imports {m} of stub {foreign[m]}" for m in sorted(_imported(tree) & set(foreign) - own)]
    return problems


def check_common(root: Path) -> list[str]:
    """`common` imports no stub, and no study."""
    modules = {p.stem for slug in known_slugs(root) for p in (root / slug).glob("*.py")}
    imports = [(path.name, m) for path, tree in _trees(root / "common") for m in sorted(_imported(tree) & modules)]
    return [f"common/{name}: imports {m}, part of a stub" for name, m in imports]


# --- Commands of a README --------------------------------------------------------------------------------------------

# Programs that a README may call besides python, torchrun and make; their arguments are not looked at.
OTHER_PROGRAMS = set(". source export git pip tensorboard sbatch scontrol head tail cat ls for done".split())


def bash_commands(text: str) -> list[list[list[str]]]:
    """The ```bash blocks of a Markdown text, each as a list of commands, each a list of words.

    Comments and redirections are dropped, continued lines joined, lists (`a && b; c | d`) taken apart, environment
    assignments and shell keywords before a program removed, shell variables replaced by 0. Raises ValueError for a line
    that a shell could not read.
    """
    blocks = []
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        commands = []
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            commands.append([])
            for word in lexer:
                if not set(word) <= set("();<>|&"):
                    commands[-1].append(re.sub(r"\$(\w+|\{\w+\})?", "0", word))
                elif set(word) & set("<>"):
                    next(lexer, None)
                else:
                    commands.append([])
        programs = (list(dropwhile(_is_prefix, command)) for command in commands)
        blocks.append([command for command in programs if command])
    return blocks


def _is_prefix(word: str) -> bool:
    return word in ("do", "time", "srun") or re.match(r"\w+=", word) is not None


def check_commands(root: Path, readme: Path) -> list[str]:
    """Every command in a README's bash blocks: readable by a shell, naming files, make targets and flags that exist.

    Each block starts in the README's folder, or, where its first `cd` says so, at the root.
    """
    if not readme.is_file():
        return []
    try:
        blocks = bash_commands(readme.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{readme.relative_to(root)}: a bash block cannot be parsed: {error}"]
    problems, scripts = [], defaultdict(list)
    for block in blocks:
        here = readme.parent
        for number, command in enumerate(block):
            if command[0] == "cd":
                places = [base / command[-1] for base in (here, root) if (base / command[-1]).is_dir()]
                here = (places or [here])[0]
                # A fresh clone's folder has whatever name; it is this repository.
                complaint = "" if places or (number and "clone" in block[number - 1]) else "no such folder"
            elif script := next((word for word in command if word.endswith(".py")), None):
                complaint = "" if (here / script).is_file() else "no such file"
                if not complaint:
                    arguments = command[command.index(script) + 1 :]
                    scripts[(here / script).resolve()].append((shlex.join(command), arguments))
            else:
                complaint = _complaint(root, command)
            problems += [(shlex.join(command), complaint)]
    for script, uses in scripts.items():
        lines, arguments = zip(*uses)
        if script.stem == module_of(script.parent.name) and not is_study(script.parent.name):
            answers = [refusal for refusal, _ in ask(root, script.parent.name, list(arguments))]
        else:
            answers = [_unknown_to_help(root, [script], words) for words in arguments]
        problems += zip(lines, answers)
    return [f"{readme.relative_to(root)}: `{line}`: {complaint}" for line, complaint in problems if complaint]


def _complaint(root: Path, command: list[str]) -> str:
    """Why a command that runs no script could not work, or an empty text."""
    program = Path(command[0]).name
    if program == "make":
        targets = set(re.findall(r"^([a-z][\w-]*):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        goals = {word for word in command[1:] if "=" not in word and not word.startswith("-")}
        return "no such make target" if goals - targets else ""
    if re.fullmatch(r"python[\d.]*", program) and command[1:2] == ["-m"]:
        if importlib.util.find_spec(command[2]) is None:
            return "no such module"
        return _unknown_to_help(root, command[1:3], command[3:]) if command[2].startswith("common.") else ""
    return "" if program in OTHER_PROGRAMS else f"unknown command {program}"


def _unknown_to_help(root: Path, program: list, arguments: list[str]) -> str:
    """Why a program with `--help` behind its arguments would refuse them, or which of its flags that help does not name."""
    if not arguments:
        return ""
    done = run_python([*program, *arguments, "--help"], root, root, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()[-200:]
    known = set(re.findall(r"--[\w-]+", done.stdout))
    flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
    return ", ".join(f"unknown flag {flag}" for flag in flags if flag not in known)


# --- All of it -------------------------------------------------------------------------------------------------------


def check_stub_commands(root: Path, slug: str) -> list[str]:
    """`check_commands` of a stub's README."""
    return check_commands(root, root / slug / "README.md")


def check_repository(root: Path) -> list[str]:
    """Problems of what lies outside the stubs: dependency direction, sizes, README.md, freshness of RESULTS.md and its figures."""
    problems = check_common(root) + check_sizes(root) + check_commands(root, root / "README.md")
    for name in ("README.md", "SPEC.md", "RESULTS.md"):
        problems += check_links(root, root / name) if (root / name).is_file() else [f"{name} is missing"]
    try:
        problems += [f"{name} is stale: run `make results`" for name in stale_files(root)]
    except BadInput as error:
        problems.append(str(error))
    return problems


STUB_CHECKS = (check_files, check_readme, check_results, check_presets, check_code, check_stub_commands)
STUDY_CHECKS = (check_files, check_readme, check_measurements, check_code, check_stub_commands)


def checks_of(slug: str) -> tuple:
    return STUDY_CHECKS if is_study(slug) else STUB_CHECKS
