"""Pages for people: the landing page and the API's documentation. Nothing on them comes from another host."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from html import escape
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from rayloom.serve.deps import deps_of
from rayloom.serve.problems import not_found
from rayloom.serve.routes.health import OPTIONAL, checks_of

router = APIRouter(include_in_schema=False)
_ALONE: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STRICT: Final = f"default-src 'none'; style-src 'self'; img-src 'self'; {_ALONE}"
# Swagger UI writes styles of its own and talks to this API.
_DOCS: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    f"connect-src 'self'; {_ALONE}"
)
_SENTENCES: Final = {
    "ready": "Ready: everything that rayloom needs answers.",
    "degraded": "Degraded: {down} not answering. Nothing is lost, but work goes slower.",
    "unavailable": "Not ready: something that rayloom needs does not answer.",
}
# The assets of Swagger UI ship with a package; what is ours lies beside this room's code.
_FOREIGN: Final = {
    "swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": ("swagger-ui.css", "text/css"),
}
_OWN: Final = {"rayloom.css": "text/css", "docs.js": "text/javascript", "favicon.svg": "image/svg+xml"}
_DAY: Final = {"Cache-Control": "public, max-age=86400"}


def _subject(names: Collection[str]) -> str:
    first = sorted(names)
    return f"{', '.join(first[:-1])} and {first[-1]} are" if len(first) > 1 else f"{''.join(first)} is"


@router.get("/")
async def landing(request: Request) -> Response:
    """What this is, whether it is ready, and where to go."""
    deps = deps_of(request)
    checks = await checks_of(request)
    down = {name for name, check in checks.items() if check["status"] != "ok"}
    status = "unavailable" if down - OPTIONAL else "degraded" if down else "ready"
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="{escape(check["status"])}">{escape(check["status"])}</td>'
        f"<td>{check['ms']:g} ms</td></tr>"
        for name, check in checks.items()
    )
    values = {
        "status": status,
        "sentence": _SENTENCES[status].format(down=_subject(down)),
        "rows": rows,
        "url": escape(deps.settings.public_url),
        "version": escape(request.app.version),
    }
    page = _own("index.html").decode()
    for name, value in values.items():
        page = page.replace("{{" + name + "}}", value)
    return HTMLResponse(page, headers={"Content-Security-Policy": _STRICT})


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The OpenAPI document as a page to try routes on."""
    return HTMLResponse(_own("docs.html"), headers={"Content-Security-Policy": _DOCS})


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """A file that the pages need."""
    if name in _OWN:
        return Response(_own(name), media_type=_OWN[name], headers=_DAY)
    if name in _FOREIGN:
        path, kind = _FOREIGN[name]
        return Response(_foreign(path), media_type=kind, headers=_DAY)
    raise not_found("this file")


@router.get("/favicon.ico")
async def favicon() -> Response:
    """What browsers ask for without being told to."""
    return Response(_own("favicon.svg"), media_type="image/svg+xml", headers=_DAY)


@cache
def _own(name: str) -> bytes:
    return (files("rayloom.serve.pages") / name).read_bytes()


@cache
def _foreign(name: str) -> bytes:
    return (files("fastapi_offline") / "static" / name).read_bytes()
