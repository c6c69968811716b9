"""How a run is asked to stop: Ctrl-C, SIGTERM, SIGUSR1, or the end of the torchrun that started it.

While a run trains, a signal is only noted. The tiles that are being computed are finished, the iteration they belong to is
dropped, and the run leaves a checkpoint of the iteration before (`Workers.run_tiles` brings the news to all ranks). Before
and after training there is nothing to save, and the program leaves at once.

A stop must come even where the main thread is inside a long library call, or waits for a rank that hangs. So a small
thread looks on (Python runs a signal's handler only between two steps of the main thread, but writes its number to a pipe at
once): GRACE_S after SIGTERM or SIGUSR1 it ends the process. The last checkpoint is whole at any moment.
"""

import math
import os
import select
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
GRACE_S = 8.0  # from SIGTERM or SIGUSR1 to the end of the process, at the latest


def say(line: str) -> None:
    """A line on stderr, from a handler or beside a main thread that hangs: never an exception where its reader is gone, never a
    wait where its pipe is full."""
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, line.encode())


def _command_line(pid: int) -> bytes:
    """Of a process; empty where that cannot be told (other systems than Linux, a process that is gone)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Interrupted(KeyboardInterrupt):
    """A signal outside of training. `signal`: its number."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = number


def _parent() -> int:
    """The process that started this one; 0 if init took over this rank, for torchrun was killed before the rank came here."""
    pid = os.getppid()
    return 0 if pid == 1 and b"torch" not in _command_line(1) else pid  # a container's first process may be torchrun


class StopRequest:
    """Use as a context around a whole run, and `while_training` within it.

    requested: whether a stop was asked for. signal: the first signal's number, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._training = False
        # torchrun passes Ctrl-C on, to which a terminal may add its own: there a second one does not insist.
        self._torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        self._parent = _parent()
        self._torchrun_is_gone = False

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        self._from_pipe, self._to_pipe = os.pipe()
        os.set_blocking(self._to_pipe, False)
        self._handlers_before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._pipe_before = signal.set_wakeup_fd(self._to_pipe, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *exception) -> None:
        signal.set_wakeup_fd(self._pipe_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        os.close(self._to_pipe)  # which ends the watcher
        self._watcher.join()
        os.close(self._from_pipe)

    @contextmanager
    def while_training(self):
        """Within it signals are noted and do not interrupt."""
        self._training = True
        try:
            yield self
        finally:
            self._training = False

    def pass_on(self) -> None:
        """Ask torchrun to stop too: with --max-restarts it would take ranks that stop for a fault, and start them again.

        Not where torchrun has asked itself (it sends SIGTERM or passes Ctrl-C on), and never a process that is not torchrun.
        """
        asked_by_torchrun = self.signal in (signal.SIGTERM, signal.SIGINT)
        if self._torchrun and not asked_by_torchrun and b"torch" in _command_line(os.getppid()):
            os.kill(os.getppid(), signal.SIGTERM)

    def _handle(self, number: int, frame) -> None:
        insisting = number == signal.SIGINT and self.signal == signal.SIGINT and not self._torchrun
        self.signal = self.signal or number
        if insisting or not self._training:
            raise Interrupted(number)
        if number == signal.SIGINT and not self._torchrun:
            # Not print: the signal may have come in the middle of one.
            say("\nstopping at the end of a tile; Ctrl-C again stops at once (--resume: from the last save)\n")

    def _watch(self) -> None:
        """End the process when a stop takes too long; ask for one when torchrun is gone and cannot ask any more."""
        deadline, asked = math.inf, None
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._from_pipe], [], [], min(left, 1.0))[0]:
                numbers = os.read(self._from_pipe, 64)
                if not numbers:
                    return
                insistent = [number for number in numbers if number in SIGNALS and number != signal.SIGINT]
                if insistent and asked is None:
                    deadline, asked = time.monotonic() + GRACE_S, insistent[0]
            elif self._torchrun and asked is None and not self._torchrun_is_gone and os.getppid() != self._parent:
                # Its ranks would go on to the end by themselves, and keep the run's folder locked.
                say("torchrun is gone: stopping\n")
                self._torchrun_is_gone = True
                os.kill(os.getpid(), signal.SIGTERM)
        say(f"not stopped within {GRACE_S:g} s: leaving; --resume continues from the last save\n")
        os._exit(128 + asked)
