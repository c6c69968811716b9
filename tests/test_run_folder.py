"""The run folder by itself: what a checkpoint's checksum sees, what a full disk leaves, and who may write."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import LONG, assert_same_run, flags, last_iteration, parent_of, results, snapshot

from common import files
from common.errors import BadInput, Fault
from common.run import RunFolder, load_checkpoint, pack_checkpoint

pytestmark = [
    pytest.mark.promise("checkpoints"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc, mounts a file system"),
]

# --- The checksum ----------------------------------------------------------------------------------------------------


@pytest.fixture
def packed() -> bytes:
    state = {"iteration": 3, "identity": "abc", "u_Nr": torch.randn(6, 2), "validation": 0.5}
    return pack_checkpoint(state)


def test_a_checkpoint_is_an_ordinary_file_of_torch(packed, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(packed)
    plain = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    ours = load_checkpoint(tmp_path / "checkpoint.pt")
    assert plain.keys() == ours.keys() and torch.equal(plain["u_Nr"], ours["u_Nr"])
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None and len(archive.comment) == 64


def test_every_flipped_bit_is_seen(packed, tmp_path):
    """Of the numbers, of torch's own records, of the checksum, of the padding between them."""
    path = tmp_path / "checkpoint.pt"
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        if place in (len(packed) - 66, len(packed) - 65):
            continue  # the length of the comment: nothing is read from it, and torch.load is given its own
        with pytest.raises(BadInput, match="damaged"):
            load_checkpoint(path)


def test_every_length_is_seen(packed, tmp_path):
    path = tmp_path / "checkpoint.pt"
    for length in range(len(packed)):
        path.write_bytes(packed[:length])
        with pytest.raises(BadInput, match="damaged"):
            load_checkpoint(path)
    path.write_bytes(packed + b"\0")
    with pytest.raises(BadInput, match="damaged"):
        load_checkpoint(path)


# --- Replacing files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_the_copy_stays_what_it_was(tmp_path, monkeypatch, links):
    """Where the file system has no second names for a file, it is copied."""
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    now, before = tmp_path / "now", tmp_path / "before"
    for content in (b"first", b"second", b"third"):
        if now.exists():
            files.copy_atomically(now, before)
        files.write_atomically(now, content)
    assert (before.read_bytes(), now.read_bytes()) == (b"second", b"third")
    assert {path.name for path in tmp_path.iterdir()} == {"now", "before"}


def test_the_temporary_file_of_a_killed_writer_is_not_written_into(tmp_path):
    """It may be a second name of the last good checkpoint."""
    good, path = tmp_path / "good", tmp_path / "path"
    good.write_bytes(b"good")
    os.link(good, tmp_path / "path.tmp")
    files.write_atomically(path, b"new")
    assert (good.read_bytes(), path.read_bytes()) == (b"good", b"new")


# --- A full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of `size` bytes. Needs the right to mount: else the test is skipped."""
    place, mounted = tmp_path / "disk", []

    def make(size: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a file system")
        mounted.append(place)
        return place

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    command, torchrun, main, reference, small_disk, tmp_path, ranks
):
    changes = {**LONG, "checkpoint_every": 5, "iterations": 400}
    folder = small_disk(4_000_000) / "run"
    words = [*flags(**changes), "--run-dir", folder]
    process = torchrun(ranks, *words) if ranks else command(*words)
    process.wait_for_iteration(folder, 20)
    with open(folder.parent / "of somebody else", "wb", buffering=0) as other:
        try:
            while True:
                other.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    code, _, stderr = process.end()
    assert code == 1, stderr
    assert f"--run-dir {folder}: " in stderr
    assert "cannot be written: No space left on device; what was saved before is whole" in stderr
    assert "Traceback" not in stderr or ranks  # torchrun's own
    saved = load_checkpoint(folder / "checkpoint.pt")["iteration"]
    # Several more could still be written: a new checkpoint takes the place of one that is given up.
    assert saved % 5 == 0 and saved >= 20 and not list(folder.glob("*.tmp"))
    (folder.parent / "of somebody else").unlink()
    moved = shutil.copytree(folder, tmp_path / "moved")  # a run may also go on elsewhere
    assert main(*flags(**changes), "--run-dir", moved, "--resume") == 0
    assert_same_run(moved, reference(**changes))


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_disk_that_fails_anywhere_leaves_the_last_checkpoint(tmp_path, monkeypatch, call):
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    folder.begin(0)
    state = {"iteration": 1, "u_Nr": torch.zeros(3)}
    folder.save(state)
    folder.save({**state, "iteration": 2})

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_bytes", fail)
        else:
            patch.setattr(files.os, call, fail)
        with pytest.raises(Fault, match="iteration 3 cannot be written: No space left"):
            folder.save({**state, "iteration": 3})
    assert load_checkpoint(folder.checkpoint)["iteration"] == 2
    assert load_checkpoint(folder.previous)["iteration"] in (1, 2)
    folder.save({**state, "iteration": 3})
    assert [load_checkpoint(path)["iteration"] for path in (folder.checkpoint, folder.previous)] == [3, 2]


def test_a_cache_on_a_full_disk(command, small_disk, tmp_path, monkeypatch):
    """Encoded sequences do not fit: one line, and nothing of them is left."""
    disk = small_disk(60_000)
    monkeypatch.setenv("MOVING_MNIST_CACHE", str(disk))
    code, stdout, stderr = command(*flags(), "--run-dir", tmp_path / "run").end()
    assert (code, stdout) == (2, ""), stderr
    assert "cannot write the cache of encoded sequences" in stderr and "No space left on device" in stderr
    assert stderr.rstrip().rpartition("\n")[2].startswith("moving_mnist_es_reservoir.py: error: ")
    assert not list(disk.glob("*.tmp")) and not (tmp_path / "run").exists()


# --- The lock --------------------------------------------------------------------------------------------------------


def test_the_second_process_is_refused_and_told_who_the_first_is(command, main, tmp_path):
    folder = tmp_path / "run"
    words = [*flags(**{**LONG, "iterations": 10_000}), "--run-dir", folder]
    first = command(*words)
    first.wait_for_iteration(folder, 5)
    for action in ("--resume", "--overwrite"):
        with pytest.raises(BadInput, match=f"is in use by process {first.pid} on "):
            main(*words, action)
    with pytest.raises(BadInput, match="already holds a run|is in use"):
        main(*words)
    reached = last_iteration(folder)
    first.wait_for_iteration(folder, reached + 5)  # and it has noticed nothing


def test_the_lock_of_a_dead_process_is_not_in_the_way(command, main, reference, tmp_path):
    folder = tmp_path / "run"
    words = [*flags(**LONG), "--run-dir", folder]
    first = command(*words)
    first.wait_for_iteration(folder, 15)
    os.kill(first.pid, signal.SIGKILL)
    first.end()
    assert parent_of(first.pid) is None
    assert f"process {first.pid} on " in (folder / ".lock").read_text()  # left as it was, and worth nothing
    assert main(*words, "--resume") == 0
    assert_same_run(folder, reference(**LONG))
    assert f"process {os.getpid()} on " in (folder / ".lock").read_text()


def test_looking_does_not_lock(main, reference, tmp_path):
    """--evaluate of a run that is being written changes nothing, not even the lock."""
    folder = Path(shutil.copytree(reference(), tmp_path / "run"))
    (folder / ".lock").unlink()
    before = snapshot(folder)
    assert main("--preset", "smoke", "--run-dir", folder, "--evaluate") == 0
    assert snapshot(folder) == before


# --- Other code ------------------------------------------------------------------------------------------------------


def test_a_run_that_went_on_with_another_torch_says_so(main, reference, tmp_path, capsys):
    """It may go on, but its bits are promised by nobody, and no one commit has made it."""
    folder = Path(shutil.copytree(reference(), tmp_path / "run"))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["begun_with"]["torch"] = "2.0.0"
    (folder / "checkpoint.pt").write_bytes(pack_checkpoint(state))
    capsys.readouterr()
    assert main(*flags(), "--run-dir", folder, "--resume") == 0
    assert (
        "not in the bits of an uninterrupted one: torch is '2.0.0' where this run was begun" in capsys.readouterr().err
    )
    dirty = results(folder)["source"]["dirty"]
    assert dirty or dirty is None  # None: not a git repository
    # And back again: it stays a mixed run.
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["begun_with"]["torch"] == "2.0.0"


def test_lines_that_a_disk_has_lost_are_told(main, reference, tmp_path, capsys):
    folder = Path(shutil.copytree(reference(), tmp_path / "run"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    assert main(*flags(), "--run-dir", folder, "--resume") == 0
    assert "metrics.jsonl has 3 good lines of 5: the others are lost" in capsys.readouterr().err
