"""SIGTERM and Ctrl-C: what is done is saved, and the exit code says that the same command goes on from there."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h.
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


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
    """Until `listen`, `SIGNALS` end the process: nothing is done yet that could be lost."""
    _handle(lambda number, _: leave(f"stopped by {SIGNALS[number]} before anything was done."))


def listen() -> None:
    """From here on `SIGNALS` raise `Terminated`, wherever the program is, unless they are `deferred`."""

    def stop(number, _):
        raise Terminated(f"stopped by {SIGNALS[number]}; the same command goes on from the last checkpoint.")

    _handle(stop)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, `SIGNALS` wait: yields a function that tells whether one came. What nobody acted on comes at the end.

    A second Ctrl-C does not wait: what is awaited may never come, as the answer of a reward that hangs.

    Signals belong to the main thread; elsewhere none ever comes.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number, frame):
        again = number == signal.SIGINT and number in came
        came.append(number)
        if again:
            before[number](number, frame)

    before = _handle(note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _handle(handler: Callable) -> dict:
    """Gives `SIGNALS` a handler, and returns those of before.

    One that is ignored stays so: a shell starts what is to outlive it, or runs in the background, in that way.
    """
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}
