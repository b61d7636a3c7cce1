"""Large inputs and outputs of a whole rayloom that keeps them in S3, while Redis forgets everything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import redis

from rayloom.db.s3 import MARK
from tests.integration.instance import FAULTS, Instance, running
from tests.integration.runs import Run, echo, python, sleep, step
from tests.integration.s3 import S3Server
from tests.integration.waiting import wait_until


@pytest.fixture(scope="module")
def private_instance(s3: S3Server) -> Iterator[Instance]:
    """A rayloom whose blobs are in S3."""
    with running(**s3.environ) as started:
        yield started


def forget(instance: Instance) -> None:
    with redis.Redis.from_url(instance.redis_url) as cache:
        cache.flushall() if instance.services is None else cache.flushdb()


def test_large_contents_flow_through_a_task_while_redis_forgets(private_instance: Instance, s3: S3Server) -> None:
    given, made = "ä" * 60_000, 400_000
    plan = [
        echo("given", given),
        python("made", f"print('x' * {made}, end='')"),
        sleep("pause", 3, "given", "made"),
        echo("copy", {"$ref": "given.output"}, "pause"),
        echo("length", {"both": [{"$ref": "made.output.stdout"}, {"$ref": "copy.output"}]}),
        step("write", "files.write", {"path": "a.txt", "content": {"$ref": "copy.output"}}),
        step("read", "files.read", {"path": "a.txt"}, "write"),
        echo("small", 1, "read"),
    ]
    with private_instance.client() as client:
        run = Run.submit(private_instance, client, plan)
        wait_until(lambda: run.progress()["completed"] >= 2, what=run.progress)
        forget(private_instance)
        run.completed()
        forget(private_instance)
        # Inline up to 256 KiB, and the input whole.
        assert run.subtask("copy")["output"] == run.subtask("read")["output"]["content"] == given
        assert run.subtask("given")["input"] == {"value": given}
        reference = run.subtask("length")["output"]
        with private_instance.http() as http:
            answer = http.get(reference["$blob"].removeprefix("/api/v1"))
            result = http.get(f"tasks/{run.task_id}/result")
        raw = answer.content
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (reference["size"], reference["sha256"])
        assert answer.json() == {"both": ["x" * made, given]}
        assert result.json()["length"] == answer.json()
        assert hashlib.sha256(result.content).hexdigest() == run.details()["result"]["sha256"]
        if not FAULTS:
            assert set(run.attempts()) == {1}
        run.expect_sound()
    rows = private_instance.sql("SELECT sha256, data, place FROM blobs")
    assert {row["place"].removeprefix("s3://blobs/all/") for row in rows} == s3.objects("all").keys() - {MARK}
    assert all(row["data"] is None and row["sha256"] in row["place"] for row in rows)
    apart = private_instance.sql("SELECT key FROM sub_tasks WHERE output_blob IS NOT NULL ORDER BY key")
    assert [row["key"] for row in apart] == ["copy", "given", "length", "made", "read"]
