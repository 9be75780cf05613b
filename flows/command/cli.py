"""The command ``featherweight``: from what was asked to an exit status, and to a line for whatever goes wrong.

Exit status: 0 passed, 1 verdict not passed or something is broken, 2 bad input, 3 unexpected error, 4 nothing can be
written to the home or another disk, 130 interrupted, 141 whoever read the output left.
"""

from __future__ import annotations

import gc
import inspect
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from cyclopts import CycloptsError

from flows.command import arguments, commands

RUNS = (commands.demo, commands.compress, commands.study, commands.ablate, commands.search)
"""Commands whose work goes on where it ended."""
BAD_INPUT, UNEXPECTED, DISK, INTERRUPTED, UNREAD = 2, 3, 4, 130, 141
LONGEST_REFUSAL = 300
"""Characters that are said of arguments that cannot be read."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    words = sys.argv[1:] if words is None else words
    command, bound = read(words)
    takes, as_json = bound.signature.parameters, bound.arguments.get("json", False)
    before = signal.signal(signal.SIGTERM, _interrupt) if command in RUNS else None
    try:
        if "json" in takes:  # unlike help and completion
            from flows.servers import embedded
            from tasks.engine import disk

            embedded.configure()  # looks for the password of this home's servers
            if command is not commands.doctor:  # which looks for itself
                disk.require_home()
        status = command(*bound.args, **bound.kwargs) or commands.PASSED
        sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        return UNREAD if _nobody_reads() else _failed(*_explained(error), as_json=as_json)
    except KeyboardInterrupt:
        return _failed(INTERRUPTED, f"interrupted{_resumption(words) if command in RUNS else ''}", as_json=as_json)
    except Exception as error:
        return _failed(*_explained(error), as_json=as_json)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        gc.freeze()  # all of it goes with the process; looking through it first would take half a second


def _nobody_reads() -> bool:
    """Whether standard output was closed by its reader, such as ``head``; nothing more is then written there."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    is_closed = any(event & select.POLLERR for _, event in output.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def _interrupt(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does, also after Prefect, which has a handler of its own while the flow is run."""
    raise KeyboardInterrupt


def _resumption(words: Sequence[str]) -> str:
    """How a run goes on: its stages are cached by what they are, so what was said before finds them again."""
    again = shlex.join(["featherweight", *words])
    said = again if len(again) <= LONGEST_REFUSAL else f"{again[: LONGEST_REFUSAL // 3]} …, as before"
    return (
        "; finished stages are kept, and training goes on from its last checkpoint. "
        f"To go on where this ended, say again: {said}"
    )


def read(words: Sequence[str]) -> tuple[Callable[..., int | None], inspect.BoundArguments]:
    """Finds the command and its arguments, and exits with one line where they cannot be read."""
    try:
        if not words:
            raise CycloptsError("a command is missing")
        command, bound, _ = commands.app.parse_args(words, print_error=False, exit_on_error=False, verbose=False)
        return command, bound
    except CycloptsError as error:
        asked = " ".join(["featherweight", *(error.command_chain or ())])
        said = arguments.line(" ".join(str(error).split()).removesuffix("."), LONGEST_REFUSAL)
        print(f"featherweight: {said}; see '{asked} --help'", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _explained(error: BaseException) -> tuple[int, str]:
    """Exit status, and what went wrong, beginning at the cause that the user can mend, if there is one."""
    from tasks.contracts.base import FeatherweightError
    from tasks.engine import disk

    if what := disk.trouble(error):
        return DISK, what
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FeatherweightError):
            return BAD_INPUT, str(cause)
        cause = cause.__cause__ or cause.__context__
    try:
        disk.require_home()  # a server on the same disk says only that it failed
    except disk.HomeError as full:
        return DISK, str(full)
    from flows.command import console

    console.keep(error)
    summary = " ".join(str(error).split())[:300]
    return UNEXPECTED, f"unexpected {type(error).__name__}: {summary}\nsee {console.log_path()}"


def _failed(status: int, text: str, *, as_json: bool) -> int:
    """Says what went wrong, where a document was asked for also in one, and returns the exit status."""
    from flows.command import console
    from tasks.engine.redaction import hide

    lines = [arguments.line(line) for line in hide(text).strip().split("\n")]
    for line in lines:
        print(f"featherweight: {line}", file=sys.stderr)
    if as_json and not console.is_answered:
        console.print_json({"error": "\n".join(lines), "exit_status": status})
    return status


if __name__ == "__main__":
    sys.exit(main())
