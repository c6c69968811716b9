"""Numbers as people read them."""

import pytest

from common.text import duration, in_words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.95, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (259, "4 min 19 s"),
     (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(950, "950"), (12800, "12,800"), (9.8e6, "9.8 million"), (2.345e9, "2.35 billion")]
)
def test_counts(count, text):
    assert in_words(count) == text
