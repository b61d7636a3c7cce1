"""The scripted endpoint itself, as a process and in its manners."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.models.endpoint import Endpoint, Reply

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    answers = tmp_path_factory.mktemp("answers") / "answers.json"
    answers.write_text(json.dumps([{"match": "capital", "text": "Paris."}]))
    command = [sys.executable, "-m", "tests.integration.models.endpoint", "--answers", str(answers)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as running:
        assert running.stdout is not None
        yield running.stdout.readline().strip()
        running.terminate()


def ask(url: str, model: str, text: str, **more: Any) -> httpx2.Response:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}], **more}
    with httpx2.Client(trust_env=False, timeout=120) as client:
        return client.post(f"{url}/chat/completions", json=body)


def said(answer: httpx2.Response) -> str:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


def test_the_model_says_the_manner_and_the_prompt_the_answer(process: str) -> None:
    assert said(ask(process, "good", "The capital of France?")) == "Paris."
    assert said(ask(process, "whatever", "Hello")) == "You said: Hello"
    late = ask(process, "rate-limited", "Hello")
    assert (late.status_code, late.headers["retry-after"]) == (429, "1")
    assert ask(process, "plain", "Hello", temperature=0).status_code == 400
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert said(ask(process, "good", "Hello", response_format=wanted)) == '{"n": 0}'
    with httpx2.Client(trust_env=False) as client:
        assert client.get(f"{process}/models").json()["data"][0]["id"] == "good"
        asked = client.get(process.replace("/v1", "/asked")).json()
    assert asked[0]["body"]["model"] == "good"
    assert asked[0]["answered"]


def test_a_flaky_one_fails_every_other_time(process: str) -> None:
    assert {ask(process, "flaky", "Hello").status_code for _ in range(2)} == {200, 500}


def test_who_leaves_is_noticed() -> None:
    with Endpoint([Reply(hang="within", text="one two three four")]) as endpoint:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        with (
            httpx2.Client(trust_env=False, timeout=120) as client,
            client.stream("POST", f"{endpoint.url}/chat/completions", json=body) as answer,
        ):
            assert answer.status_code == 200
        assert endpoint.wait_asked(1).left.wait(120)


def test_a_gate_is_waited_for_and_a_connection_used_again() -> None:
    with Endpoint([Reply(gate="go", text="one two"), Reply(text="three")]) as endpoint:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        with httpx2.Client(trust_env=False, timeout=120) as client:
            with client.stream("POST", f"{endpoint.url}/chat/completions", json=body) as answer:
                assert not endpoint.asked[0].answered.is_set()
                endpoint.open_gate("go")
                assert "tw" in answer.read().decode()
            assert said(client.post(f"{endpoint.url}/chat/completions", json=body)) == "three"
        assert [each.connection for each in endpoint.asked] == [1, 1]
