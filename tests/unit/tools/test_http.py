"""http.request and http.fetch_text against a server on loopback, reached through the allow-list only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.builtin.exchange import retry_after_s
from rayloom.tools.builtin.page import read_page
from rayloom.tools.call import call_tool
from tests.unit.tools.context import make_context
from tests.unit.tools.web import Web, as_json
from tests.unit.tools.web import web as serving


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as site:
        yield site


async def ask(web: Web, input: dict[str, Json], tool: str = "http.request", **settings: Any) -> Any:
    context = make_context(**{"allow_addresses": (f"127.0.0.1:{web.port}",), **settings})
    return (await call_tool(BUILTINS[tool], input, context)).output


async def test_a_json_answer_is_parsed(web: Web) -> None:
    url = web.answer("/x", as_json({"a": [1]}), content_type="application/problem+json; charset=utf-8")
    output = await ask(web, {"url": url})
    assert (output["status"], output["json"], output["body"]) == (200, {"a": [1]}, '{"a": [1]}')


async def test_a_json_answer_with_a_byte_order_mark_is_parsed(web: Web) -> None:
    output = await ask(web, {"url": web.answer("/x", b'\xef\xbb\xbf{"a": 1}', content_type="application/json")})
    assert output["json"] == {"a": 1}


async def test_another_answer_is_text_in_its_charset(web: Web) -> None:
    output = await ask(
        web, {"url": web.answer("/x", "größe".encode("latin-1"), content_type="text/plain; charset=latin-1")}
    )
    assert (output["body"], output["json"]) == ("größe", None)


async def test_a_host_header_names_the_url_and_not_the_pinned_address(web: Web) -> None:
    web.answer("/x")
    await ask(web, {"url": f"http://localhost:{web.port}/x"}, allow_addresses=(f"localhost:{web.port}",))
    assert web.asked[0].headers["host"] == f"localhost:{web.port}"


async def test_a_post_carries_its_json_and_an_idempotency_key(web: Web) -> None:
    await ask(web, {"url": web.answer("/x"), "method": "POST", "json": {"n": 1}})
    asked = web.asked[0]
    assert (asked.method, asked.body, asked.headers["idempotency-key"]) == ("POST", b'{"n":1}', "key-1")
    assert asked.headers["content-type"] == "application/json"


async def test_a_get_carries_no_idempotency_key_and_a_given_one_is_kept(web: Web) -> None:
    url = web.answer("/x")
    await ask(web, {"url": url})
    await ask(web, {"url": url, "method": "POST", "body": "b", "headers": {"Idempotency-Key": "mine"}})
    assert "idempotency-key" not in web.asked[0].headers
    assert web.asked[1].headers["idempotency-key"] == "mine"


async def test_without_the_allow_list_loopback_is_refused(web: Web) -> None:
    with pytest.raises(Refused, match="not a public address"):
        await ask(web, {"url": web.answer("/x")}, allow_addresses=())
    assert web.asked == []


async def test_a_redirect_to_a_private_address_is_refused(web: Web) -> None:
    url = web.answer("/x", status=302, location="http://127.0.0.1:1/secret")
    with pytest.raises(Refused, match="not a public address"):
        await ask(web, {"url": url})


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://0x7f000001/", "http://u:p@example.com/"])
async def test_a_redirect_to_what_no_url_may_be_is_refused(web: Web, location: str) -> None:
    with pytest.raises(UserError, match="URL"):
        await ask(web, {"url": web.answer("/x", status=302, location=location)})


async def test_authorization_stays_with_its_origin(web: Web) -> None:
    web.answer("/end")
    web.answer("/there", status=307, location=f"http://localhost:{web.port}/end")
    url = web.answer("/here", status=307, location="/there")
    allowed = (f"127.0.0.1:{web.port}", f"localhost:{web.port}")
    headers: Json = {"Authorization": "Bearer s", "PRIVATE-TOKEN": "s", "Cookie": "s", "Accept": "text/csv"}
    await ask(web, {"url": url, "headers": headers}, allow_addresses=allowed)
    assert [asked.headers.get("authorization") for asked in web.asked] == ["Bearer s", "Bearer s", None]
    assert [asked.headers.get("private-token") for asked in web.asked] == ["s", "s", None]
    assert set(web.asked[2].headers) <= {"host", "accept", "user-agent", "accept-encoding", "connection"}
    assert web.asked[2].headers["accept"] == "text/csv"


async def test_a_post_that_is_told_to_see_other_becomes_a_get(web: Web) -> None:
    web.answer("/end")
    await ask(web, {"url": web.answer("/x", status=303, location="/end"), "method": "POST", "body": "b"})
    assert (web.asked[1].method, web.asked[1].body) == ("GET", b"")
    assert "content-type" not in web.asked[1].headers


async def test_redirects_without_end_are_given_up(web: Web) -> None:
    with pytest.raises(UserError) as error:
        await ask(web, {"url": web.answer("/x", status=302, location="/x")})
    assert error.value.code == "HTTP_REDIRECTS"
    assert len(web.asked) == 11


async def test_an_answer_that_is_too_large_is_refused(web: Web) -> None:
    with pytest.raises(Refused) as error:
        await ask(web, {"url": web.answer("/x", b"x" * 2_000)}, http_max_body_bytes=1_000)
    assert error.value.code == "HTTP_TOO_LARGE"


async def test_a_small_answer_that_unpacks_to_a_large_one_is_refused(web: Web) -> None:
    url = web.answer("/x", b"\0" * 3_000_000, content_encoding="gzip")
    with pytest.raises(Refused) as error:
        await ask(web, {"url": url}, http_max_body_bytes=1_000_000)
    assert error.value.code == "HTTP_TOO_LARGE"


async def test_too_many_requests_are_transient_with_the_wait_that_is_asked_for(web: Web) -> None:
    with pytest.raises(Transient) as error:
        await ask(web, {"url": web.answer("/x", b"slow down", status=429, retry_after="7")})
    assert (error.value.code, error.value.retry_after_s) == ("HTTP_429", 7.0)
    assert "slow down" in error.value.message


@pytest.mark.parametrize("status", [408, 425, 500, 503])
async def test_statuses_that_may_pass(web: Web, status: int) -> None:
    with pytest.raises(Transient):
        await ask(web, {"url": web.answer("/x", status=status)})


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_statuses_that_are_the_users(web: Web, status: int) -> None:
    with pytest.raises(UserError):
        await ask(web, {"url": web.answer("/x", status=status)})


async def test_a_server_that_hangs_is_given_up(web: Web) -> None:
    with pytest.raises(Transient) as error:
        await ask(web, {"url": web.url + "/hang"}, http_timeout_s=0.2)
    assert error.value.code == "HTTP_TIMEOUT"


async def test_a_closed_port_is_transient(web: Web) -> None:
    with pytest.raises(Transient) as error:
        await ask(web, {"url": "http://127.0.0.1:1/"}, allow_addresses=("127.0.0.1:1",))
    assert error.value.code == "HTTP_FAILED"


async def test_a_proxy_of_the_environment_is_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert (await ask(web, {"url": web.answer("/x")}))["status"] == 200


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Proxy-Authorization"])
async def test_headers_that_are_ours(web: Web, name: str) -> None:
    with pytest.raises(UserError, match="set by the tool"):
        await ask(web, {"url": web.answer("/x"), "headers": {name: "x"}})


async def test_a_header_that_smuggles_a_line_is_refused(web: Web) -> None:
    with pytest.raises(UserError):
        await ask(web, {"url": web.answer("/x"), "headers": {"X-A": "b\r\nX-C: d"}})
    assert web.asked == []


@pytest.mark.parametrize(
    "headers", [{"X-A": "geheim é"}, {"X-É": "b"}, {"X A": "b"}, {"": "b"}, {"X-A": "geheim \x7f"}]
)
async def test_a_header_that_http_can_not_carry_is_refused(web: Web, headers: Json) -> None:
    with pytest.raises(UserError, match="printable ASCII") as error:
        await ask(web, {"url": web.answer("/x"), "headers": headers})
    assert (error.value.code, web.asked) == ("HTTP_INVALID", [])
    assert "geheim" not in error.value.message


@pytest.mark.parametrize(
    "charset",
    [
        *("charset=idna", "charset=punycode", "charset=undefined", "charset=unicode_escape", "charset=hex"),
        *("charset=no-such", "charset*=utf-8''a%00b", "charset*=a%00b''c", 'charset="', "charset=\xff"),
    ],
)
async def test_a_charset_that_is_none_means_utf_8(web: Web, charset: str) -> None:
    url = web.answer("/x", "größe \\x".encode(), content_type=f"text/plain; {charset}")
    assert (await ask(web, {"url": url}))["body"] == "größe \\x"
    page = web.answer("/y", "<p>größe \\x".encode(), content_type=f"text/html; {charset}")
    assert (await ask(web, {"url": page}, tool="http.fetch_text"))["text"] == "größe \\x"


async def test_json_that_can_not_be_written_is_its_author_s_fault(web: Web) -> None:
    with pytest.raises(UserError):
        await ask(web, {"url": web.answer("/x"), "method": "POST", "json": ["\ud800"]})


@pytest.mark.parametrize(
    ("page", "text"),
    [(b"a<![x[y]]>b", "ab"), (b"a<![>b", "ab"), (b"a<![9[>b", "ab"), (b"a<![CDATA[x>y]]>b", "ab"), (b"a<![", "a")],
)
def test_unknown_marks_are_skipped(page: bytes, text: str) -> None:
    # Older releases of Python's parser keep a mark that the page ends in.
    assert read_page(page, None).text.removesuffix("<![") == text


async def test_json_and_body_together_are_refused(web: Web) -> None:
    with pytest.raises(UserError, match="either json or body"):
        await ask(web, {"url": web.answer("/x"), "method": "POST", "json": {}, "body": ""})


async def test_a_page_becomes_text(web: Web) -> None:
    page = b"""<html><head><title> A &amp; B </title><style>p{}</style></head><body><nav>menu</nav>
    <h1>Head</h1><p>One   two<br>three</p><script>evil()</script><ul><li>x<li>y</ul></body></html>"""
    output = await ask(web, {"url": web.answer("/p", page, content_type="text/html")}, tool="http.fetch_text")
    assert output == {"url": web.url + "/p", "title": "A & B", "text": "Head\n\nOne two\nthree\n\n- x\n- y"}


async def test_the_url_of_a_page_keeps_its_query_where_errors_and_logs_do_not(web: Web) -> None:
    web.answer("/p?page=2&token=geheim", b"text", content_type="text/plain")
    moved = web.answer("/old?token=geheim", status=302, location="/p?page=2&token=geheim#part")
    for url in (web.url + "/p?page=2&token=geheim#part", moved):
        context = make_context(allow_addresses=(f"127.0.0.1:{web.port}",))
        output = (await call_tool(BUILTINS["http.fetch_text"], {"url": url}, context)).output
        assert output == {"url": web.url + "/p?page=2&token=geheim", "title": "", "text": "text"}
        assert context.log.lines  # type: ignore[attr-defined]
        assert "geheim" not in str(context.log.lines)  # type: ignore[attr-defined]
    for status, kind in ((500, "text/plain"), (404, "text/plain"), (200, "image/png")):
        web.answer("/p?token=geheim", status=status, content_type=kind)
        with pytest.raises(RayloomError) as error:
            await ask(web, {"url": web.url + "/p?token=geheim"}, tool="http.fetch_text")
        assert f"{web.url}/p" in error.value.message
        assert "geheim" not in error.value.message


async def test_a_picture_is_no_text(web: Web) -> None:
    with pytest.raises(UserError, match="not text"):
        await ask(web, {"url": web.answer("/p", b"\x89PNG", content_type="image/png")}, tool="http.fetch_text")


def test_a_page_may_name_its_charset_itself() -> None:
    body = '<meta charset="iso-8859-1"><title>ü</title>'.encode("latin-1")
    assert read_page(body, None).title == "ü"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("12", 12.0),
        ("-1", None),
        ("soon", None),
        ("999999999", 86_400.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, now=60.0) == seconds
