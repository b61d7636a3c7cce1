"""The program ``rayloom``: its commands, and what becomes of an error.

Nothing heavy is imported before a command needs it: ``rayloom --help`` answers in well under half a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Annotated

import typer
from typer.main import get_command

from rayloom.cluster.cli import (
    admin,
    approvals,
    audit,
    letters,
    plans,
    quotas,
    records,
    registry,
    reruns,
    sandbox,
    services,
    tasks,
    webhooks,
)
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.output import complain, one_line
from rayloom.dag.errors import RayloomError

app = typer.Typer(
    name="rayloom",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"rayloom {metadata.version('rayloom')}")
        raise typer.Exit


@app.callback()
def rayloom(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn complex requests into DAGs of subtasks, and run them, durably, on Ray."""


_COMMANDS: tuple[tuple[str, Callable[..., None] | typer.Typer], ...] = (
    ("up", services.up),
    ("down", services.down),
    ("status", services.status),
    ("env", services.env),
    ("submit", tasks.submit),
    ("plan", plans.plan),
    ("watch", tasks.watch),
    ("list", tasks.list_tasks),
    ("show", tasks.show),
    ("cancel", tasks.cancel),
    ("approve", approvals.approve),
    ("reject", approvals.reject),
    ("retry", reruns.retry),
    ("fork", reruns.fork),
    ("logs", records.logs),
    ("trace", records.trace),
    ("batch", services.batch),
    ("tools", registry.tools),
    ("dead-letters", letters.dead_letters),
    ("webhooks", webhooks.webhooks),
    ("keys", admin.keys),
    ("usage", quotas.usage),
    ("quotas", quotas.quotas),
    ("audit", audit.audit),
    ("sandbox", sandbox.sandbox),
    ("doctor", services.doctor),
    ("migrate", services.migrate),
    ("bench", services.bench),
)
for _name, _command in _COMMANDS:
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)


def main() -> None:
    """The entry point: run the command line of this process, and exit with its code."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; gives its exit code: 0 ok, 1 error, 2 usage, 3 task FAILED, 4 task CANCELLED."""
    try:
        get_command(app)(args=None if arguments is None else list(arguments), prog_name="rayloom")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK if ended.code is None else ExitCode.ERROR
    except RayloomError as error:
        _report(error)
    except Exception as error:  # noqa: BLE001 - the outermost wall: one line, not a stack trace
        _report_unexpected(error)
    return ExitCode.ERROR


def _report(error: RayloomError) -> None:
    from rayloom.serve.answers import Rejected

    complain(error.message)
    for fault in error.problem.faults if isinstance(error, Rejected) else ():
        typer.echo(f"  {one_line(fault.pointer) or '/'}: {one_line(fault.message)}", err=True)


def _report_unexpected(error: Exception) -> None:
    from rayloom.cluster.home import HomeError
    from rayloom.cluster.settings import SettingsError

    if isinstance(error, SettingsError):
        for line in error.lines:
            complain(line)
        return
    if isinstance(error, HomeError | OSError):
        complain(str(error))
        return
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        complain(f"{error.object[:80]!a} can't be written as UTF-8: give it as UTF-8 text")
        return
    if _debugs():
        raise error
    complain(f"unexpected {type(error).__name__}: {error} (RAYLOOM_DEBUG=1 shows where)")


def _debugs() -> bool:
    from rayloom.cluster.settings import SettingsError
    from rayloom.cluster.settings_of_up import settings_here

    try:
        return settings_here().debug
    except SettingsError:  # of a folder that the command did not need
        return False
