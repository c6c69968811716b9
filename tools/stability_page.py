"""Write the counts of the last run of the stability tests into docs/stability.md: `make stability`.

Reads docs/stability.json, which `pytest --record` has written, and replaces what stands between the two marks of the page.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS, PAGE = ROOT / "docs" / "stability.json", ROOT / "docs" / "stability.md"
BEGIN, END = "<!-- counts: written by tools/stability_page.py -->", "<!-- end of counts -->"
PROMISES = (
    "any number of ranks", "killed and resumed", "preemption", "checkpoints", "guardrails", "a rank that hangs",
    "ranks that come apart", "bad input",
)  # fmt: skip
KILL_WORDS = ("SIG", "while writing")  # how the names of kills begin


def render(record: dict) -> str:
    """The part between the marks."""
    where, source = record["environment"], record["source"]
    lines = [
        f"Last run: commit `{source['commit'][:10]}`{' and changes to it' if source['dirty'] else ''}, "
        f"{where['device_name']}, {where['threads']} cores, torch {where['torch']}, Python {where['python']}; "
        f"{record['seconds'] / 60:.0f} minutes in all.",
        "",
        "| promise | tests passed | failed | skipped | seconds |",
        "|---|---|---|---|---|",
    ]
    for name in PROMISES:
        counts = record["promises"].get(name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0})
        lines.append(
            f"| {name} | {counts['passed']} | {counts['failed']} | {counts['skipped']} | {counts['seconds']:.0f} |"
        )
    measured = dict(record["measured"])
    kills = {name: len(values) for name, values in measured.items() if name.startswith(KILL_WORDS)}
    lines += [
        "",
        f"Random kills: {sum(kills.values())} (seed {measured.get('seed', ['none'])[0]}): "
        + ", ".join(f"{count} × {name}" for name, count in kills.items())
        + ".",
        "",
    ]
    for name, values in measured.items():
        if name != "seed" and name not in kills:
            lines.append(f"- {name}: {', '.join(text(value) for value in values)}")
    return "\n".join(lines)


def text(value) -> str:
    return " and ".join(f"{entry:g}" for entry in value) if isinstance(value, list) else f"{value:g}"


def page() -> str:
    """docs/stability.md as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render(json.loads(COUNTS.read_text()))}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
