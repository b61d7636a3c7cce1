"""Words that say what comes after what, in English and Chinese, and where running text falls into steps."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final


class Relation(Enum):
    """How a step stands to the steps before it."""

    AFTER = "after everything that is still open"
    BESIDE = "beside the step before it"


_FIRST: Final = r"first(?:ly|\s+of\s+all)?\b|to\s+begin\s+with\b|首先|先"
_AFTER_EN: Final = (
    r"(?:and\s+)?(?:then|next|after\s+(?:that|this)|afterwards?|subsequently|finally|lastly|in\s+the\s+end)\b"
    r"|(?:second|third|fourth|fifth)(?:ly)?(?=\s*[,:])"
)
_AFTER_ZH: Final = r"然后|接着|紧接着|接下来|之后|随后|而后|其次|再(?![次见现生度])|最后(?![一几两的])|最终"
_BESIDE_EN: Final = (
    r"(?:and\s+)?(?:meanwhile|in\s+the\s+meantime|at\s+the\s+same\s+time|in\s+parallel|simultaneously|concurrently)\b"
)
_BESIDE_ZH: Final = r"与此同时|同时|并行地?"

_LEADING: Final = re.compile(
    rf"\s*(?:(?P<after>{_AFTER_EN}|{_AFTER_ZH})|(?P<beside>{_BESIDE_EN}|{_BESIDE_ZH})|(?P<first>{_FIRST}))[\s,，、:：]*",
    re.IGNORECASE,
)
_BESIDE_INSIDE: Final = re.compile(
    r"[(（]\s*(?:in\s+)?(?:parallel|simultaneously|concurrently|并行|同时)\s*[)）]"
    r"|\b(?:in\s+parallel\s+with|at\s+the\s+same\s+time\s+as)\b",
    re.IGNORECASE,
)
# A new step begins at a cue that stands at the start, after punctuation or a line's end, or, where the cue is plain
# enough, anywhere. Spaces are looked at from where they begin, once: from each of them would be quadratic.
_BREAK: Final = re.compile(
    rf"(?:(?:^|(?<=[.;!?,:。；！？，、：]))\s*+|(?<!\s)[^\S\n]*+\n\s*+)"
    rf"(?={_AFTER_EN}|{_AFTER_ZH}|{_BESIDE_EN}|{_BESIDE_ZH})"
    rf"|(?<!\s)\s++(?=(?:and\s+)?then\b|and\s+(?:finally|meanwhile|afterwards)\b)"
    rf"|(?=然后|接着|随后|与此同时)",
    re.IGNORECASE,
)
_CONDITION: Final = re.compile(r"\b(?:if|when|unless|whenever)\b|如果|若|假如", re.IGNORECASE)
_LEADING_THEN: Final = re.compile(r"\s*then\b", re.IGNORECASE)
_THEN: Final = re.compile(r"\bthen\b", re.IGNORECASE)

_JOINING: Final = re.compile(
    r"\b(?:using|based\s+on|from|with)\s+(?:(?:the|all|these|those|both|their|previous|above)\s+)*"
    r"(?:results?|outputs?|findings|answers)\b"
    r"|\b(?:combine|merge|summari[sz]e|aggregate|consolidate|compare)\b"
    r"|汇总|合并|综合|总结|整合|对比|比较|(?:根据|基于|利用|使用|结合).{0,12}?(?:结果|输出)",
    re.IGNORECASE,
)
_FETCHING: Final = re.compile(
    r"(?:please\s+)?(?:fetch|get|download|open|read|visit|load|retrieve|crawl|scrape|grab)\b"
    r"|请?(?:抓取|下载|获取|读取|打开|访问|拉取|爬取)",
    re.IGNORECASE,
)
_CHINESE: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_LATIN: Final = re.compile(r"[A-Za-z]")


def language_of(text: str) -> str:
    """``zh``, ``en``, or ``und`` (undetermined) for text with letters of neither."""
    chinese, latin = len(_CHINESE.findall(text)), len(_LATIN.findall(text))
    if not chinese and not latin:
        return "und"
    # A Chinese character says about as much as a word: four Latin letters.
    return "zh" if chinese * 4 >= latin else "en"


def is_chinese(text: str) -> bool:
    """Whether there is any Chinese character in it."""
    return _CHINESE.search(text) is not None


def relation_of(text: str) -> Relation | None:
    """What a step says of its place: by its first words, or a remark such as "(in parallel)"; None where it doesn't."""
    leading = _LEADING.match(text)
    if (leading and leading.group("beside")) or _BESIDE_INSIDE.search(text):
        return Relation.BESIDE
    return Relation.AFTER if leading and leading.group("after") else None


def without_cue(text: str) -> str:
    """``text`` without the words that only place it ("then", "最后")."""
    leading = _LEADING.match(text)
    return (text[leading.end() :] if leading else text).strip()


def joining_word(text: str) -> str:
    """The word by which a step says that it works on the results of those before it; empty where it doesn't."""
    found = _JOINING.search(text)
    return found.group().lower() if found else ""


def is_fetching(text: str) -> bool:
    """Whether a step only asks for something to be fetched."""
    return _FETCHING.match(without_cue(text)) is not None and not joining_word(text)


def clauses(text: str, *, whole: Sequence[tuple[int, int]] = ()) -> list[str]:
    """Running text, divided at its cues; sentences without one stay with the step before them.

    ``whole`` are stretches (start and end, ascending) that are not looked into.
    """
    pieces: list[str] = []
    start = 0
    kept = deque(whole)
    for found in _BREAK.finditer(text):
        while kept and kept[0][1] <= found.start():
            kept.popleft()
        if kept and kept[0][0] < found.end():
            continue
        piece = text[start : found.start()]
        if piece.strip() and not _is_consequence(piece, text, found.end()):
            pieces.append(piece)
            start = found.end()
    pieces.append(text[start:])
    return [piece.strip().rstrip(",，、;；").rstrip() for piece in pieces if piece.strip(" \t\n,，、;；")]


def _is_consequence(before: str, text: str, at: int) -> bool:
    """Whether the "then" at this place belongs to an "if" before it."""
    return bool(_LEADING_THEN.match(text, at) and _CONDITION.search(before) and not _THEN.search(before))
