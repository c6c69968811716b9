"""docs/stability.md tells the counts of docs/stability.json, and of a run in which nothing failed."""

import importlib.util
import json

from conftest import ROOT


def page_module():
    specification = importlib.util.spec_from_file_location("stability_page", ROOT / "tools" / "stability_page.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_tells_the_counts_of_the_last_run():
    module = page_module()
    assert module.PAGE.read_text() == module.page(), "run: python tools/stability_page.py"


def test_every_promise_was_tested_and_nothing_failed():
    module = page_module()
    record = json.loads(module.COUNTS.read_text())
    assert set(record["promises"]) == set(module.PROMISES)
    for name, counts in record["promises"].items():
        assert counts["failed"] == 0 and counts["passed"] > 0, name
    kills = sum(len(values) for name, values in record["measured"].items() if name.startswith(module.KILL_WORDS))
    assert kills >= 30
