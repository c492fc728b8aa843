"""The `ip2p` command: which words there are, and how errors become one line and an exit code.

Exit codes: 0 done, 1 something broke, 2 a mistake in what was asked, 130 interrupted.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence

from ip2p import __version__
from ip2p.cli import benchmark, data, doctor, editing, runs, serving, triplets
from ip2p.cli.parsing import HELP_WORDS, call
from ip2p.console import RESUME_HINT, is_mistake, log_failure, one_line, start_logging, suggest

COMMANDS: dict[str, Callable[..., None]] = {
    "run": runs.run,
    "dataset": runs.dataset,
    "dataset import": data.import_pairs,
    "dataset export": data.export_pairs,
    "dataset invert": data.invert,
    "dataset compose": data.compose,
    "dataset preferences": data.prefer,
    "dataset sessions": data.join_sessions,
    "dataset inspect": data.inspect,
    "dataset judges": data.try_judges,
    "prompts inspect": triplets.inspect_prompts,
    "prompts try": triplets.try_caption,
    "prompts export": triplets.export,
    "prompts import": triplets.import_triplets,
    "prompts finetune": triplets.finetune,
    "plan": data.plan_costs,
    "train": runs.train,
    "evaluate": runs.evaluate,
    "benchmark": benchmark.benchmark,
    "refilter": runs.refilter,
    "report": runs.report,
    "compare": runs.compare,
    "ablate": runs.ablate,
    "edit": editing.edit,
    "app": editing.app,
    "serve": serving.serve,
    "doctor": doctor.doctor,
}
"""Functions of typed arguments. `dataset` is a command and a group, which tyro's subcommands cannot be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; the console script's entry."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    start_logging(debug)
    try:
        code = _run_command([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"\nip2p: interrupted. {RESUME_HINT}", file=sys.stderr)
        return 130
    except Exception as error:
        return 0 if isinstance(error, BrokenPipeError) and _nobody_reads() else _fail(error, debug)


def overview(group: str = "") -> str:
    """Lists the commands, or those of a group, with one line each."""
    rows = [
        f"  {name:<17} {(action.__doc__ or '').strip().splitlines()[0]}"
        for name, action in COMMANDS.items()
        if name.startswith(group)
    ]
    hint = "`ip2p COMMAND --help` shows a command's options; --debug shows tracebacks; --version the version."
    return "\n".join([f"usage: ip2p {group}COMMAND …", "", *rows, "", hint])


def _run_command(words: list[str]) -> int:
    first = words[0] if words else "help"
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else first
    members = [command.partition(" ")[2] for command in COMMANDS if command.startswith(f"{first} ")]
    if first in (*HELP_WORDS, "help"):
        print(overview())
    elif first == "--version":
        print(f"ip2p {__version__}")
    elif name in COMMANDS:
        try:
            call(COMMANDS[name], words[len(name.split()) :], f"ip2p {name}")
        except SystemExit as end:  # tyro ends so after help
            return int(end.code or 0)
    elif not members:
        raise ValueError(f"unknown command {name}. {suggest(name, list(COMMANDS))}")
    elif words[1:2] and words[1] in HELP_WORDS:
        print(overview(f"{first} "))
    else:
        raise ValueError(f"`ip2p {first}` takes {', '.join(members)}; got {words[1] if words[1:] else 'nothing'}.")
    return 0


def _nobody_reads() -> bool:
    """Returns True if standard output was closed, as by `head`; what is left to write then goes nowhere."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        is_closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
        if is_closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return False
    return is_closed


def _fail(error: Exception, debug: bool) -> int:
    """Prints one line on standard error; the traceback goes to the log file, or to the terminal with --debug."""
    code, path = 2 if is_mistake(error) else 1, log_failure(error)
    where = "" if code == 2 else f" The log is {path}." if path else " Add --debug to see where."
    print(f"ip2p: error: {one_line(error)}{where}", file=sys.stderr)
    if debug:
        raise error
    return code
