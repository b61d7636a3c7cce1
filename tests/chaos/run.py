"""A chaos run: ``python -m tests.chaos.run --minutes 5 --seed 1 --subtasks 5000``.

Mixed DAGs are submitted over the whole time, while a seeded killer is at work on everything that they need. When it is
over, everything must come to its right end by itself, and the whole history is held against every guarantee. Exit code
0: no violation. On a failure, also of the run itself, the seed, what was killed when, the stories of what went wrong,
and where the logs were copied to are printed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from tests.chaos.case import Violation
from tests.chaos.checker import check, story
from tests.chaos.driver import Driver
from tests.chaos.history import read_ledger
from tests.chaos.kept import keep_logs
from tests.chaos.killer import Killer
from tests.chaos.plans import CALL
from tests.chaos.receiver import Outside, Receiver
from tests.chaos.record import History
from tests.chaos.rig import Rig
from tests.integration.waiting import wait_until

SHOWN: Final = 8
AT_HAND: Final = 300
"""Subtasks that are submitted just before the power is cut, so that there is something to go on with."""
PROGRESS_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    minutes: float
    seed: int
    subtasks: int
    workers: int
    power_cord: bool
    kill: bool = True
    keep: bool = False


def run(options: Options) -> int:
    """One run; gives the exit code."""
    with Receiver(Outside(options.seed)) as receiver, Rig(workers=options.workers) as rig:
        driver = Driver(rig, receiver, seed=options.seed, subtasks=options.subtasks, span_s=options.minutes * 60)
        killer = Killer(rig, options.seed, tell=driver.tell)
        nodes = f"a Ray of {1 + options.workers} nodes" if options.workers else "the local Ray"
        driver.tell(f"seed {options.seed}: {options.subtasks} subtasks in {options.minutes:g} minutes, on {nodes}")
        try:
            rig.start()
            driver.begin()
            driver.make_users()
            with driver:
                is_kept = not _drive(options, rig, driver, killer)
        except Exception:  # noqa: BLE001 - whatever it is, it must not take with it what tells why
            is_kept = False
            driver.tell(f"seed {options.seed}: THE RUN ITSELF FAILED\n{traceback.format_exc()}")
            _tell_blows(driver, killer)
            for fault in driver.faults.seen:
                driver.tell(str(fault))
            driver.tell(f"the API was away for {driver.watch.away_s:.1f} s at most")
        if not is_kept:
            driver.tell(f"seed {options.seed}: the logs are in {keep_logs(rig.folder, options.seed)}")
            if options.keep:
                driver.tell(f"kept: {rig.folder}; end it by Enter")
                sys.stdin.readline()
    return 0 if is_kept else 1


def _drive(options: Options, rig: Rig, driver: Driver, killer: Killer) -> list[Violation]:
    submitting = ThreadPoolExecutor(max_workers=1).submit(driver.submit_all)
    if options.kill:
        killer.start()
    try:
        _wait_out(submitting, options.minutes * 60)
    finally:
        if options.kill:
            killer.stop()
    driver.tell(f"no more blows after {len(killer.blows)}; {driver.open_tasks()} tasks are open")
    power_back_at = _power_cord(rig, driver) if options.power_cord else None
    submitting.result()
    drained_s = driver.drain()
    if power_back_at is not None:
        driver.tell(f"all had ended {time.monotonic() - power_back_at:.1f} s after the power was back")
    history = driver.history(driver.leftovers(), killer.upsets)
    violations = check(history)
    _report(options, driver, killer, history, violations, drained_s)
    return violations


def _wait_out(submitting: Future[None], span_s: float) -> None:
    """Wait for so long. Raises at once what ends the submission before its time."""
    began_at = time.monotonic()
    wait([submitting], timeout=span_s)
    if submitting.done():
        submitting.result()
        threading.Event().wait(max(0.0, began_at + span_s - time.monotonic()))


def _power_cord(rig: Rig, driver: Driver) -> float:
    """Everything dies at once, with much at hand; Ray and `rayloom up` on the same home, and it goes on by itself.

    Gives when the power was back.
    """
    driver.submit_at_once(AT_HAND)
    count = rig.cut_the_power()
    marks = len(read_ledger(rig.ledger))
    driver.tell(f"power off: {count} processes died at once, after {marks} calls")
    back_at = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        starting = pool.submit(rig.start)
        wait_until(
            lambda: len(read_ledger(rig.ledger)) > marks or (starting.done() and starting.exception() is not None),
            within_s=PROGRESS_S,
            what=rig.instance.said,
        )
        progress_at = time.monotonic()
        starting.result()
    for what, at in (("first progress", progress_at), ("serving", time.monotonic())):
        driver.tell(f"{what} {at - back_at:.1f} s after the power was back, {at - rig.up_at:.1f} s after `rayloom up`")
    return back_at


def _report(
    options: Options,
    driver: Driver,
    killer: Killer,
    history: History,
    violations: Sequence[Violation],
    drained_s: float,
) -> None:
    ends = Counter(attempt.status for attempt in history.attempts)
    blows = Counter(f"{blow.what} {blow.victim}" for blow in killer.blows)
    answers = Counter(call.status for call in history.calls)
    fell_back = sum(each.tool == CALL and each.attempt in each.on_fallback for each in history.subtasks)
    repeated = len(history.heard) - len({each.id for each in history.heard})
    driver.tell(
        f"{len(history.tasks)} tasks, {len(history.subtasks)} subtasks, {len(history.marks)} calls, "
        f"{len(history.lives)} lives of schedulers; attempts: {dict(ends)}"
    )
    by_hand = dict(sorted(driver.attendant.done.items()))
    driver.tell(f"{driver.cancelled} cancelled, {driver.again} sent again; by hand: {by_hand}")
    by_answer = dict(sorted(answers.items()))
    driver.tell(f"{len(history.calls)} requests outside, answered {by_answer}; {fell_back} calls ended by a fallback")
    watch = driver.watch
    driver.tell(
        f"breakers opened {watch.openings} times; the API was away for {watch.away_s:.1f} s at most, "
        f"{watch.away_in_all_s:.1f} s in all"
    )
    driver.tell(f"{len(history.webhooks)} webhooks, heard {len(history.heard)} times, {repeated} of them repetitions")
    driver.tell(f"blows: {dict(sorted(blows.items()))}; drained {drained_s:.1f} s after the last submission")
    if not violations:
        driver.tell(f"seed {options.seed}: every guarantee was kept")
        return
    driver.tell(f"seed {options.seed}: {len(violations)} VIOLATIONS {dict(Counter(each.rule for each in violations))}")
    _tell_blows(driver, killer)
    for violation in violations[:SHOWN]:
        driver.tell(f"--- {violation}")
        for line in story(history, violation)[:60]:
            driver.tell(f"      {line}")


def _tell_blows(driver: Driver, killer: Killer) -> None:
    for blow in killer.blows:
        driver.tell(str(blow))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--subtasks", type=int, default=5_000)
    parser.add_argument("--workers", type=int, default=1, help="Ray nodes beside the head's; 0: the local Ray")
    parser.add_argument("--power-cord", action="store_true", help="at the end kill -9 of everything at once")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="submit and check only")
    parser.add_argument("--keep", action="store_true", help="on a failure wait, with everything as it is")
    return run(Options(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())
