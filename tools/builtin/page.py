"""An HTML page as a person would read it: title, paragraphs, lists; no scripts, styles or navigation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Final

from rayloom.tools.builtin.charset import decoded

_SILENT: Final = frozenset(
    re.findall(r"\w+", "script style noscript template svg math iframe object nav button select textarea")
)
_PARAGRAPHS: Final = frozenset(re.findall(r"\w+", "p h1 h2 h3 h4 h5 h6 ul ol table pre blockquote section article"))
_BLOCKS: Final = frozenset(
    re.findall(
        r"\w+",
        "address aside body caption dd details dialog div dl dt fieldset figcaption figure footer form header hr li "
        "main summary tbody tfoot thead tr",
    )
)
_DECLARED: Final = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says."""

    title: str
    text: str


def read_page(body: bytes, charset: str | None) -> Page:
    """The text of a page. ``charset`` is what the server said; else the page's own word counts, else UTF-8."""
    reader = _Reader()
    reader.feed(_decode(body, charset))
    reader.close()
    return Page(" ".join("".join(reader.title).split()), _tidy("".join(reader.text)))


def _decode(body: bytes, charset: str | None) -> str:
    declared = _DECLARED.search(body[:2_048])
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        charset = "utf-16"
    return decoded(body, (charset, declared[1].decode("ascii") if declared else None)).removeprefix("\ufeff")


def _tidy(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: list[str] = []
        self.text: list[str] = []
        self._silent: list[str] = []
        self._in_title = False
        self._preformatted = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent.append(tag)
        elif tag == "title" and not self._silent:
            self._in_title = not self.title
        elif not self._silent:
            self._space(tag)
            self._preformatted = self._preformatted or tag == "pre"
            if tag == "li":
                self.text.append("- ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            # What was left open inside ends with it.
            while self._silent.pop() != tag:
                continue
        elif tag == "title":
            self._in_title = False
        elif not self._silent:
            self._space(tag)
            self._preformatted = self._preformatted and tag != "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _SILENT and not self._silent:
            self._space(tag)

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._in_title:
            self.title.append(data)
        else:
            self.text.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Where ``<![…`` ends. The parser gives up at words that it doesn't know; a browser skips them."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def _space(self, tag: str) -> None:
        if tag == "br":
            self.text.append("\n")
        elif tag in ("td", "th"):
            self.text.append(" ")
        elif tag in _PARAGRAPHS:
            self.text.append("\n\n")
        elif tag in _BLOCKS:
            self.text.append("\n")
