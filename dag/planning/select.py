"""Which tools a model is shown where there are many: those whose names and descriptions fit the request, by BM25."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

from rayloom.dag.planning.brief import attachments_of
from rayloom.dag.tool_view import ToolView

MAX_SHOWN: Final = 24
_MAX_PROMPT_CHARS: Final = 20_000
_MAX_TOOL_CHARS: Final = 2_000
_K1: Final = 1.2
_B: Final = 0.75
_NAME_WEIGHT: Final = 3
"""A word of a name counts like so many of the description."""
_WORD: Final = re.compile(r"[a-z]+|[0-9]+|[\u3400-\u9fff]+")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MENTION: Final = re.compile(r"@([A-Za-z0-9_.\-]+)")
_STOP: Final = frozenset(
    [
        "a",
        "all",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "both",
        "by",
        "each",
        "first",
        "for",
        "from",
        "has",
        "have",
        "how",
        "in",
        "into",
        "is",
        "it",
        "its",
        "made",
        "of",
        "on",
        "one",
        "or",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "this",
        "three",
        "to",
        "two",
        "was",
        "were",
        "what",
        "where",
        "which",
        "who",
        "with",
    ]
)
_GENERAL: Final = frozenset(
    {"http.request", "http.fetch_text", "python.run", "sql.query", "files.read", "files.write", "text.template"}
)
"""What fits many requests whose words its description does not have: first among equals."""
_BY_NAME: Final = frozenset({"core.echo", "core.fail", "core.noop", "shell.run"})
"""What a small model is shown only where the prompt mentions it: for drills, or what a program does as well."""
# Tools are mostly described in English.
_ENGLISH: Final[Mapping[str, str]] = {
    "天气": "weather forecast", "邮件": "email mail", "邮箱": "email mail", "搜索": "search", "查找": "search find",
    "查询": "query search", "数据库": "database sql", "文件": "file", "网页": "web page http", "网址": "url http",
    "下载": "download fetch", "上传": "upload", "翻译": "translate", "图表": "chart plot", "画图": "chart plot",
    "图片": "image", "日历": "calendar", "日程": "calendar event", "会议": "meeting calendar", "代码": "code python",
    "运行": "run", "测试": "test", "部署": "deploy", "日志": "log", "监控": "metric monitor", "告警": "alert",
    "汇率": "exchange rate currency", "股票": "stock quote", "价格": "price", "航班": "flight", "酒店": "hotel",
    "火车": "train", "地图": "map", "论文": "paper", "文献": "paper", "表格": "table spreadsheet sheet",
    "报告": "report document", "文档": "document", "消息": "message", "通知": "notify message", "发送": "send",
    "订单": "order", "发票": "invoice", "客户": "customer", "工单": "ticket issue", "仓库": "repository",
    "新闻": "news", "视频": "video", "音频": "audio", "总结": "summary", "统计": "statistics", "任务": "task",
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """The words that a text is compared by: Latin ones in lower case, Chinese ones in pairs of characters."""
    words: list[str] = []
    for match in _WORD.findall(_CAMEL.sub(" ", text).lower()):
        if match[0] > "z":
            words += [match[i : i + 2] for i in range(len(match) - 1)] or [match]
        elif match not in _STOP:
            words.append(match.removesuffix("s") if len(match) > 3 else match)
    return words


def select(prompt: str, tools: Mapping[str, ToolView], *, most: int = MAX_SHOWN) -> tuple[str, ...]:
    """The names of at most ``most`` tools, best first, and beyond that of every tool that is mentioned as ``@name``."""
    if len(tools) <= most:
        return tuple(sorted(tools))
    mentioned, scores = _mentioned(prompt, tools), _scores(_asked(prompt), tools)
    best = sorted(tools, key=lambda name: (name not in mentioned, -scores[name], name not in _GENERAL, name))
    return tuple(best[: max(most, len(mentioned))])


def fitting(prompt: str, tools: Mapping[str, ToolView], *, most: int) -> tuple[str, ...]:
    """As `select`, but none that has nothing to do with the prompt: a small model uses whatever it is shown."""
    mentioned, scores = _mentioned(prompt, tools), _scores(_asked(prompt), tools)
    found = [name for name in tools if name in mentioned or (scores[name] > 0 and name not in _BY_NAME)]
    best = sorted(found, key=lambda name: (name not in mentioned, -scores[name], name))
    return tuple(best[: max(most, len(mentioned))])


def _mentioned(prompt: str, tools: Mapping[str, ToolView]) -> set[str]:
    return {match.rstrip(".-") for match in _MENTION.findall(prompt)} & tools.keys()


def _asked(prompt: str) -> set[str]:
    """The words that tools are looked for by."""
    prompt = prompt[:_MAX_PROMPT_CHARS]
    asked = set(words_of(prompt))
    for word, meaning in _ENGLISH.items():
        if word in prompt:
            asked.update(words_of(meaning))
    for name in attachments_of(prompt):
        asked.update(("url", "web", "page", "http") if "://" in name else ("file",))
    # The numbers of a request say nothing of tools.
    return {word for word in asked if not word.isdigit()}


def _scores(asked: set[str], tools: Mapping[str, ToolView]) -> dict[str, float]:
    bags = {
        name: Counter(words_of(name) * _NAME_WEIGHT + words_of(view.description[:_MAX_TOOL_CHARS]))
        for name, view in tools.items()
    }
    sizes = {name: bag.total() for name, bag in bags.items()}
    usual = max(1.0, sum(sizes.values()) / len(sizes))
    having = {word: sum(word in bag for bag in bags.values()) for word in asked}
    rarity = {word: math.log(1 + (len(bags) - count + 0.5) / (count + 0.5)) for word, count in having.items()}
    return {
        name: sum(
            rarity[word] * bag[word] * (_K1 + 1) / (bag[word] + _K1 * (1 - _B + _B * sizes[name] / usual))
            for word in sorted(asked)
            if word in bag
        )
        for name, bag in bags.items()
    }
