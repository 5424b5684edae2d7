"""SIGTERM: what is done is saved, and the exit code says that the same command goes on from there."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h.


class Terminated(BaseException):
    """Asked to stop. No Exception, as KeyboardInterrupt is none: nothing that handles errors should handle it."""


def leave(why: str) -> NoReturn:
    """Ends the process here and now, with `EXIT_CODE`.

    Not by an exception: a computation that is still at work on its threads would crash in an interpreter that is taken
    down around it.
    """
    print(f"rtbjax: {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def leave_when_asked() -> None:
    """Until `listen`, SIGTERM ends the process: nothing is done yet that could be lost."""
    signal.signal(signal.SIGTERM, lambda *_: leave("stopped by SIGTERM before anything was done."))


def listen() -> None:
    """From here on SIGTERM raises `Terminated`, wherever the program is, unless it is `deferred`."""

    def stop(*_):
        raise Terminated("stopped by SIGTERM; the same command goes on from the last checkpoint.")

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM waits: yields a function that tells whether it came. One that nobody acted on comes at the end.

    Signals belong to the main thread; elsewhere none ever comes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked.is_set():
        signal.raise_signal(signal.SIGTERM)
