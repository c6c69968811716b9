"""How a user's mistake reaches the user: one exception, a parser that raises it, and the exit codes of every script."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
RANK_0_SPEAKS_S = 10.0  # how long other ranks hold back their own message; ranks start seconds apart on a busy machine


class BadInput(ValueError):
    """Input that the user can mend: the command line prints its message as one line and exits with code 2."""


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line raise BadInput; flags must be written out."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def reason(error: Exception) -> str:
    """What an exception says, as a single short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]


def run_main(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Call main(None), which reads the command line, and leave with the exit code that it returns.

    BadInput becomes one line on stderr and code 2, Ctrl-C code 130.
    """
    name, main_rank = Path(sys.argv[0]).name, int(os.environ.get("RANK", 0)) == 0
    sys.stdout.reconfigure(errors="replace")  # a terminal without θ shows a question mark
    try:
        code = main(None)
    except BadInput as error:
        if not main_rank:
            # The complaint should be seen once, from rank 0. torchrun ends all ranks as soon as one has left: give rank 0
            # time to speak first. Whoever is still there after that knows something that rank 0 does not.
            time.sleep(RANK_0_SPEAKS_S)
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        if main_rank:
            print(f"{name}: interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Everything is written and the group of ranks is taken down. What the interpreter would still take down are threads
        # of gloo and of torch, and now and then (two in some thirty starts of up to five ranks) that ended in an abort.
        os._exit(code)
    sys.exit(code)
