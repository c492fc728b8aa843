"""The `ip2p` command: which words there are, and how errors become one line and an exit code.

Exit codes: 0 done, 1 something broke, 2 a mistake in what was asked, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from ip2p import __version__
from ip2p.cli import benchmark, data, editing, runs, serving
from ip2p.cli.runs import mirrored
from ip2p.config.files import suggest
from ip2p.console import GOES_ON, is_mistake, log_failure, start_logging, told_in_a_line

COMMANDS = {
    "run": runs.run,
    "dataset": runs.dataset,
    "prompts": data.prompts,
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
}

HELP_WORDS = ("-h", "--help", "help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; the console script's entry."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in HELP_WORDS:
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"ip2p {__version__}")
        return 0
    try:
        return _run_command(words[0], words[1:], debug)
    except KeyboardInterrupt:
        print(f"\nip2p: interrupted. {GOES_ON}", file=sys.stderr)
        return 130
    except Exception as error:
        return _fail(error, debug)


def overview() -> str:
    """The commands with one line each."""
    rows = [f"  {name:<10} {(command.__doc__ or '').strip().splitlines()[0]}" for name, command in COMMANDS.items()]
    ways = "ip2p COMMAND --help shows a command's options; --debug shows tracebacks; --version the version."
    return "\n".join(["usage: ip2p COMMAND …", "", *rows, "", ways])


def _run_command(name: str, words: list[str], debug: bool) -> int:
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name}. {suggest(name, list(COMMANDS))}")
    start_logging(debug)
    reads_from_anywhere = name == "prompts" and words[:1] == ["import"]
    with nullcontext(words) if reads_from_anywhere else mirrored(words) as local_words:
        COMMANDS[name](local_words)
    return 0


def _fail(error: Exception, debug: bool) -> int:
    """One line on standard error; the traceback goes to the log file, or to the terminal with --debug."""
    code, path = 2 if is_mistake(error) else 1, log_failure(error)
    where = "" if code == 2 else f" The log is {path}." if path else " Add --debug to see where."
    print(f"ip2p: error: {told_in_a_line(error)}{where}", file=sys.stderr)
    if debug:
        raise error
    return code
