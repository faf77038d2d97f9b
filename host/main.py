"""virtagentctl's entry: a Ctrl-C during the imports ends it like a later one, without a traceback."""

import os
import sys
from types import FrameType

_INTERRUPTED = 130


def main() -> int:
    """Run virtagentctl; return the exit code."""
    try:
        import signal

        _stand_in()
        untouched = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if untouched:  # otherwise the caller does not want Ctrl-C to end it
            signal.signal(signal.SIGINT, _leave)
        from .cli import main as run

        if untouched:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return run()
        finally:
            # Everything is done: a signal while the interpreter ends comes too late.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _let_go()
    except KeyboardInterrupt:
        return _INTERRUPTED


def _stand_in() -> None:
    """Open /dev/null for each standard stream that the caller has closed.

    Otherwise a sentence for the standard error would go to the standard output, and the first file that COMMAND opens
    would be its standard output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _let_go() -> None:
    """Drop buffered output that cannot be written, as to a terminal that is gone; else the exit code would be 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception during an import can be lost, or reported as ignored. Nothing has been done yet.
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
