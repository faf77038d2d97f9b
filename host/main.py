"""virtagentctl's entry: a Ctrl-C while the rest is being imported ends it as one does later, without a traceback."""

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
        if untouched:  # else whoever started this wants no Ctrl-C to end it
            signal.signal(signal.SIGINT, _leave)
        from .cli import main as run

        if untouched:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return run()
        finally:
            # All is done: what comes while the interpreter ends is too late.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _let_go()
    except KeyboardInterrupt:
        return _INTERRUPTED


def _stand_in() -> None:
    """Have /dev/null for each standard stream that whoever started this has closed.

    Else a sentence for the standard error is printed to the standard output, and the first file that COMMAND opens
    comes to be its standard output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _let_go() -> None:
    """Leave nothing that cannot be written, as to a terminal that is gone: the interpreter would end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception in an import can be lost, or told as one that was ignored. Nothing has been done yet.
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
