"""How a user's mistake reaches the user: one exception, a parser that raises it, and the exit codes of every script."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

SIGPIPE = 13  # where `signal` has none, too
RANK_0_SPEAKS_S = 10.0  # how long other ranks hold back their own message; ranks start seconds apart on a busy machine


class BadInput(ValueError):
    """Input that the user can mend: the command line prints its message as one line and exits with code 2."""


class Fault(RuntimeError):
    """What ends a run from outside, or by a rule, and is no error of the program: a full disk, a rank that hangs, a population of
    which all fail. One line that says what happened and what is left, exit code 1."""


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line raise BadInput; flags must be written out."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.endswith("=--"):  # of which argparse would make an empty list
                self.error(f"argument {word.removesuffix('=--')}: expected one argument")
        return super().parse_known_args(args, namespace)


def folder(text: str) -> Path:
    """A folder on the command line, as an argparse type. Not '': that is a shell variable which is not set, and as a path the
    working directory."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, not ''")
    return Path(text)


def reason(error: Exception) -> str:
    """What an exception says, as a single short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def run_main(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Call main(None), which reads the command line, and leave with the exit code that it returns.

    BadInput becomes one line on stderr and code 2, Fault one line and code 1, a signal that asks to stop 128 + its number (Ctrl-C: 130); so
    does an output that nobody reads any more, silently.
    """
    name, main_rank = Path(sys.argv[0]).name, int(os.environ.get("RANK", 0)) == 0
    sys.stdout.reconfigure(errors="replace")  # a terminal without θ shows a question mark
    try:
        code = main(None)
        sys.stdout.flush()
    except BadInput as error:
        if not main_rank:
            # The complaint should be seen once, from rank 0. torchrun ends all ranks as soon as one has left: give rank 0
            # time to speak first. Whoever is still there after that knows something that rank 0 does not.
            time.sleep(RANK_0_SPEAKS_S)
        _say(f"{name}: error: {' '.join(str(error).split())}")
        code = 2
    except Fault as error:  # every rank speaks: what rank 0 saw need not be the cause
        which = "" if "RANK" not in os.environ else f"rank {os.environ['RANK']}: "
        _say(f"{name}: {which}{' '.join(str(error).split())}")
        code = 1
    except KeyboardInterrupt as error:
        if main_rank:
            _say(f"{name}: interrupted")
        code = 128 + getattr(error, "signal", signal.SIGINT)
    except BrokenPipeError:  # whoever read the output has seen enough, as `… | head` has
        code = 128 + SIGPIPE
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # nor shall the interpreter complain of it at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Everything is written and the group of ranks is taken down. What the interpreter would still take down are threads
        # of gloo and of torch, and now and then (two in some thirty starts of up to five ranks) that ended in an abort.
        os._exit(code)
    sys.exit(code)
