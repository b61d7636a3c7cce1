"""How long a call of a model waits for its reservation, beside an empty call of an actor in the same run.

``python -m bench.tokens [--rate 200] [--seconds 10] [--times 5]``. Both at the same time, each at that rate, so that
whatever else the machine does slows both; several times, of whose ratios the median counts. Each reservation is settled
when it was granted, as those of real calls are. Times are those of the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray
from uuid_utils.compat import uuid7

from rayloom.actors.callers import RayTokens
from rayloom.actors.named import NamedActor
from rayloom.actors.settings import EngineSettings
from rayloom.actors.singletons import start_singleton, start_tokens
from rayloom.cluster.embedded.services import EmbeddedServices
from rayloom.cluster.home import Home
from rayloom.cluster.settings import load_settings
from rayloom.dag.answer import Answer, as_value
from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.token_port import Quota
from rayloom.db import keys
from rayloom.db.engine import make_engine
from rayloom.db.migrate import upgrade
from rayloom.db.settings import DatabaseSettings

EMPTY = "bench-empty"
Call = Callable[[], Awaitable[None]]


class Empty:
    """An actor whose call does nothing, made and asked as the singletons are."""

    async def nothing(self) -> Answer[None]:
        """Nothing."""
        return await as_value(asyncio.sleep(0))


async def paced(call: Call, *, rate: float, seconds: float) -> list[float]:
    """How long each of so many calls took, in milliseconds, begun at a steady rate whatever the others do."""
    times: list[float] = []

    async def one() -> None:
        began_at = time.perf_counter()
        await call()
        times.append(1000 * (time.perf_counter() - began_at))

    loop, tasks = asyncio.get_running_loop(), []
    first_at = loop.time()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(first_at + number / rate - loop.time(), 0))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return times


def p95(times: Sequence[float]) -> float:
    """What 95 of 100 are no longer than."""
    return statistics.quantiles(times, n=20)[18]


def row(name: str, times: Sequence[float]) -> str:
    """One line of the table."""
    parts = statistics.quantiles(times, n=100)
    return f"| {name} | {statistics.median(times):.1f} | {parts[94]:.1f} | {parts[98]:.1f} | {len(times)} |"


class Reserving:
    """Reserves for one user whose limits are wide, and settles beside the measured time."""

    def __init__(self, tokens: RayTokens, user_id: str) -> None:
        self._tokens, self._payer = tokens, Payer(user_id=user_id)
        self._settling: set[asyncio.Task[None]] = set()

    async def call(self) -> None:
        """One reservation."""
        reservation = Reservation(
            id=str(uuid7()), payer=self._payer, model="m", purpose="bench", tokens=100, cost_usd=1e-6, lease_s=60
        )
        if await self._tokens.reserve(reservation) is not None:
            raise RuntimeError("a reservation was denied though there is room")
        task = asyncio.create_task(self._tokens.settle(reservation, ModelUse(tokens_in=60, tokens_out=20)))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def end(self) -> None:
        """Wait until all is settled."""
        await asyncio.gather(*self._settling)


async def measure(database: DatabaseSettings, asked: argparse.Namespace) -> None:
    """Print the table of one run."""
    await upgrade(database.primary_dsn())
    engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=0, name="bench")
    user = await keys.create_key(engine, user="bench", role="user", key=keys.new_key())
    settings = EngineSettings(namespace="bench")
    tokens = start_tokens(settings, database)
    start_singleton(Empty, name=EMPTY, engine=settings)
    empty = NamedActor(EMPTY, settings.namespace)
    await tokens.set_quota(str(user.user_id), Quota(max_tokens=2**40, max_cost_usd=1e6, tokens_per_min=2**40))
    reserving = Reserving(tokens, str(user.user_id))

    async def nothing() -> None:
        await empty.call("nothing", idempotent=True)

    # Warm: both processes, their connections, the account.
    for call in (nothing, reserving.call):
        await paced(call, rate=asked.rate, seconds=2)
    pace = {"rate": asked.rate, "seconds": asked.seconds}
    all_empties: list[float] = []
    all_reserved: list[float] = []
    ratios = []
    for _ in range(asked.times):
        empties, reserved = await asyncio.gather(paced(nothing, **pace), paced(reserving.call, **pace))
        await reserving.end()
        all_empties += empties
        all_reserved += reserved
        ratios.append(p95(reserved) / p95(empties))
    await engine.dispose()
    print("| call | median, ms | p95, ms | p99, ms | calls |\n|---|---|---|---|---|")
    print(row("an empty call of an actor", all_empties))
    print(row("reserve", all_reserved))
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"p95 of reserve is {statistics.median(ratios):.2f} times that of an empty call in the median, at "
        f"{asked.rate:g} calls/s ({shown}); load {os.getloadavg()[0]:.1f} at the end"
    )


def main() -> None:
    """Start what it needs, measure, and throw it away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start, {time.strftime('%Y-%m-%d')}")
    # Short, because the embedded services and Ray put sockets below it.
    folder = Path(tempfile.mkdtemp(prefix="rlbt", dir="/tmp"))
    home = Home(folder / "home")
    home.acquire()
    services = EmbeddedServices(load_settings(environ={"RAYLOOM_HOME": str(home.path)}), home, lambda _: None)
    try:
        database, _ = services.start()
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder))
        asyncio.run(measure(database, asked))
    finally:
        ray.shutdown()
        services.stop()
        home.release()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
