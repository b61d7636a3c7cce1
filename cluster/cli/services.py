"""The commands that start, stop, check and measure the place itself."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.options import AsJson, InJson
from rayloom.cluster.cli.output import Output, complain, printable
from rayloom.dag.errors import UserError

if TYPE_CHECKING:
    from rayloom.db.settings import DatabaseSettings

CHECKOUT = Path(__file__).resolve().parents[2]


def up(
    no_demo: Annotated[bool, typer.Option("--no-demo", help="Serve without running the demonstration.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless you say so.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port of the HTTP API.")] = None,
    local_model: Annotated[
        str | None, typer.Option(help="small or coder: have a model on this machine, and ask no other.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="The model's licence is accepted; nobody is asked.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout once it serves; the rest on stderr.")
    ] = False,
) -> None:
    """Start everything, run one demonstration task, serve until Ctrl-C."""
    from rayloom.cluster.up import run_up

    given = {
        "host": host,
        "port": port,
        "local_model": local_model,
        "local_model_licence": "accept" if accept_licence else None,
    }
    raise typer.Exit(run_up(given, demo=False if no_demo else None, as_json=as_json))


def down(as_json: InJson = False) -> None:
    """Stop the rayloom of this home."""
    from rayloom.cluster.up import run_down

    raise typer.Exit(run_down(as_json=as_json))


def status(as_json: AsJson = False) -> None:
    """Say what runs, where, and how it is. Exit code 0 only when all of it is ready."""
    from rayloom.cluster.up import run_status

    raise typer.Exit(run_status(as_json=as_json))


def env(as_json: AsJson = False) -> None:
    """Print what a shell needs to use this rayloom and its Ray: eval "$(rayloom env)"."""
    from rayloom.cluster.home import Home
    from rayloom.cluster.ray_access import shell_variables
    from rayloom.cluster.settings_of_up import settings_of_up

    settings = settings_of_up()
    running = Home(settings.home).read_run()
    variables = shell_variables(settings, running)
    if as_json:
        Output(as_json=True).json(variables)
        return
    if running is None:
        complain(f"no rayloom runs in {settings.home}; these are the variables for the next one")
    for name, value in variables.items():
        typer.echo(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")


def doctor(as_json: AsJson = False) -> None:
    """Check this machine for everything that rayloom needs, and say what to do about what is missing."""
    from rayloom.cluster.doctor import run_doctor

    raise typer.Exit(run_doctor(as_json=as_json))


def migrate(
    url: Annotated[str | None, typer.Argument(help="The database; default: RAYLOOM_DATABASE_URL.")] = None,
    as_json: InJson = False,
) -> None:
    """Bring an external database to this version's schema. (`up` does it by itself.)"""
    database = _database(url)
    if not database.dsn_given:
        raise UserError("NO_DATABASE_URL", "no RAYLOOM_DATABASE_URL: the embedded database is migrated by `rayloom up`")
    asyncio.run(_migrate(database))
    out = Output(as_json=as_json)
    if as_json:
        out.json({"migrated": True})
    else:
        out.line("the database has this version's schema")


def _database(url: str | None) -> DatabaseSettings:
    """The one that is given, in any spelling of the setting and whatever else is set; else that of the settings."""
    from rayloom.cluster.settings_of_up import settings_here
    from rayloom.cluster.spellings import database_url
    from rayloom.db.settings import DatabaseSettings

    if not url:
        return settings_here().database
    try:
        return DatabaseSettings(url=database_url(url))
    except ValueError as error:
        raise UserError("DATABASE_URL_INVALID", f"the URL of the database {error}") from None


async def _migrate(database: DatabaseSettings) -> None:
    from rayloom.cluster import reach
    from rayloom.cluster.checks import StartRefused
    from rayloom.db.migrate import MigrationError, upgrade

    try:
        await reach.database(database)
    except StartRefused as refusal:
        raise UserError("DATABASE_UNREACHABLE", str(refusal)) from None
    try:
        await upgrade(database.primary_dsn())
    except MigrationError as error:
        raise UserError("DATABASE_RIGHTS_MISSING", str(error)) from None


def batch(
    file: Annotated[Path, typer.Argument(help="A task in each line: the JSON body of a submission.")],
    out: Annotated[Path, typer.Option("--out", help="Where the results go, one line each, in the same order.")],
    concurrency: Annotated[int, typer.Option(min=1, max=500, help="Tasks under way at once.")] = 16,
    timeout_s: Annotated[float | None, typer.Option(min=0, help="Stop after so long; a rerun goes on.")] = None,
    run: Annotated[str, typer.Option(help="A name that makes new tasks of a file that ran before.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout at the end; progress on stderr.")
    ] = False,
) -> None:
    """Run the tasks of a JSONL file. Started again with the same files it goes on where it stopped."""
    from rayloom.cluster.batch import BatchOptions, run_batch

    options = BatchOptions(source=file, out=out, concurrency=concurrency, timeout_s=timeout_s, run=run)
    try:
        with connect(patience_s=options.patience_s, connections=concurrency + 8) as client:
            ended = run_batch(client, options, say=lambda line: typer.echo(printable(line), err=as_json))
    except KeyboardInterrupt:
        complain("stopped; the tasks under way go on, and the same command goes on from here")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        Output(as_json=True).json(ended.as_json())
    raise typer.Exit(ended.exit_code)


def bench(
    arguments: Annotated[list[str] | None, typer.Argument(help="Given on to the benchmark; after --.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Every figure as one JSON document on stdout; progress on stderr.")
    ] = False,
) -> None:
    """Measure rayloom beside plain Ray, from a checkout."""
    if not (CHECKOUT / "bench" / "run.py").is_file():
        raise UserError("NO_BENCH", "the benchmarks are part of the source tree: clone it and call `make bench`")
    command = [sys.executable, "-m", "bench.run", *(arguments or [])]
    if not as_json:
        ended = subprocess.run(command, cwd=CHECKOUT, check=False)
        raise typer.Exit(ExitCode.OK if ended.returncode == 0 else ExitCode.ERROR)
    with tempfile.TemporaryDirectory(prefix="rayloom-bench-") as folder:
        figures = Path(folder) / "figures.json"
        ended = subprocess.run([*command, "--json", str(figures)], cwd=CHECKOUT, check=False, stdout=sys.stderr)
        if ended.returncode != 0:
            raise typer.Exit(ExitCode.ERROR)
        Output(as_json=True).json(json.loads(figures.read_text()))
