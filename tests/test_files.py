"""A file is replaced as a whole or not at all."""

import json

import pytest

from common.files import finite_or_none, write_atomically, write_json


@pytest.mark.parametrize("content", [b"new", lambda temporary: temporary.write_text("new")], ids=["bytes", "writer"])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old and longer")
    write_atomically(path, content)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_a_failure_the_old_file_stands_alone(tmp_path, error):
    def write(temporary):
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file" / "a", b"")


def test_undefined_numbers_become_null_at_any_depth(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, (float("inf"), {"c": float("-inf")})], "d": "nan"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "nan"}
    assert finite_or_none(True) is True and finite_or_none(2) == 2
