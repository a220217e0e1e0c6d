"""``stare``: chooses the command by the first word, before any heavy import, and turns our own errors into one message.

``fit | validate | test`` go to LightningCLI (its subcommands must be Trainer methods); every other command is a typed function of the same
name in its own module, read by jsonargparse from the command line and ``--config`` files. A command may return an int, its exit code.
"""

import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from stare_lit import __version__

PHASE_COMMANDS = {
    "fit": "train a phase: stare fit --config configs/sta_ppo.yaml",
    "validate": "evaluate a checkpoint on the validation seeds",
    "test": "evaluate a checkpoint once on the test seeds",
}
FUNCTION_COMMANDS = {
    "demos": "collect demonstrations",
    "rollouts": "sample episodes of a policy for preference pairs",
    "eval": "success of a policy, with intervals",
    "ipi": "all three phases on one lineage: stare ipi --config configs/ipi.yaml",
    "stages": "draw one episode with its stages, error, potential and reward",
    "export": "write a policy in the layout of OpenVLA, for other programs",
    "doctor": "check this machine and say the way out of each fault",
}
# Defaults for a run that asks nobody for anything; what the user has set stays.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_SILENT": "true",
    "PYTHONUNBUFFERED": "1",  # for child processes
}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def _help() -> str:
    rows = "\n".join(f"  {name:<10}{text}" for name, text in (PHASE_COMMANDS | FUNCTION_COMMANDS).items())
    return (
        f"usage: stare <command> [options]\n\n{rows}\n\n"
        "stare <command> --help lists the options of a command, --print_config prints its full configuration.\n"
        "stare --version prints the version. STARE_DEBUG=1 shows tracebacks and leaves standard input open for a debugger."
    )


def _debug() -> bool:
    return os.environ.get("STARE_DEBUG", "0") not in ("", "0")


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "WANDB_API_KEY" not in os.environ:
        os.environ.setdefault("WANDB_MODE", "offline")


def _close_stdin() -> None:
    """Any prompt, ours or a library's, ends in an EOFError instead of a run that hangs; child processes inherit it."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = os.fdopen(0, closefd=False)


def _our_message(error: BaseException | None) -> str | None:
    """The message of ``error``, or of what caused it, where a ``raise`` statement of this package raised it: then it is meant for the user.

    The causes count because jsonargparse wraps an error of a class that it makes. Lightning has a class of its own for a wrong setting.
    """
    package = Path(__file__).resolve().parent.parent
    while error is not None:
        if type(error).__name__ == "MisconfigurationException":
            return str(error)
        frames = traceback.extract_tb(error.__traceback__)
        if frames and Path(frames[-1].filename).resolve().is_relative_to(package) and (frames[-1].line or "").startswith("raise"):
            return str(error)
        error = error.__cause__
    return None


def _disk_message(error: BaseException | None) -> str | None:
    """What the disk refused, where that is what ``error`` or its cause is: nobody needs a traceback to make room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return (
                f"{error.strerror}: {error.filename or 'no file named'}; make room or choose a folder that can be written to, then run the same command again"
            )
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, with its clean-up; a second signal does not cut that short."""

    def interrupt(*_: object) -> NoReturn:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> NoReturn:
    print(f"stare: error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def _load(command: str) -> Callable[[Sequence[str]], object]:
    """Import the module of ``command`` and return what runs it on the remaining arguments."""
    if command in PHASE_COMMANDS:
        run = import_module("stare_lit.cli.lightning").run
        return lambda args: run([command, *args])
    function = getattr(import_module(f"stare_lit.cli.{command}"), command)
    auto_cli = import_module("jsonargparse").auto_cli
    return lambda args: auto_cli(function, args=list(args), prog=f"stare {command}", as_positional=False)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``stare`` on ``argv`` (default: the process's arguments) and exit: 0 done, 1 failed, 2 wrong input or a full disk, 130 interrupted."""
    command, *args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(_help())
        raise SystemExit(0)
    if command in ("-V", "--version"):
        print(f"stare_lit {__version__}")
        raise SystemExit(0)
    known = [*PHASE_COMMANDS, *FUNCTION_COMMANDS]
    if command not in known:
        close = difflib.get_close_matches(command, known, n=1)
        _fail(f"unknown command {command!r}; {f'did you mean {close[0]!r}? ' if close else ''}known: {', '.join(known)} (stare --help)")

    _set_environment()
    if not _debug():
        _close_stdin()
    try:
        with _interruptible():
            result = _load(command)(args)
    except KeyboardInterrupt as error:
        print(f"stare: interrupted{f'; go on with: {error}' if str(error) else ''}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except EOFError as error:
        if _debug():
            raise
        _fail(f"a library asked a question on standard input ({error}); run with STARE_DEBUG=1 to see which")
    except Exception as error:
        message = "a configuration refers to itself (a YAML anchor inside what it names)" if isinstance(error, RecursionError) else None
        message = message or _our_message(error) or _disk_message(error)
        if _debug() or message is None:
            raise
        _fail(message)
    raise SystemExit(result if type(result) is int else 0)
