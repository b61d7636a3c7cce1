"""What a small model is told when it is to plan, and the schema that it is held to.

Small models invent tools and inputs, and have steps come after themselves. The grammar that an endpoint makes of this
schema leaves them no room for that: ids are given, a step can come only after earlier ones, and each tool has its own
input. Larger models are asked more freely (`prompt.py`, `schema.py`): so many schemas in one most endpoints refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count, islice
from typing import Any, Final

from rayloom.dag.model import Message
from rayloom.dag.planning.brief import MAX_CHARS, MAX_QUESTIONS
from rayloom.dag.planning.prompt import context_text, signature
from rayloom.dag.planning.read import CODE, THINK
from rayloom.dag.references import REF
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject

MAX_STEPS: Final = 8
MAX_DO_CHARS: Final = 300
_MAX_MEMBERS: Final = 8
_RULES: Final = (
    "You split a request into steps. Answer with ONE line of JSON, nothing else:\n"
    '{"intent":"…","subtasks":[{"id":"s1","do":"…","after":[],"tool":"…"}]}\n'
    "- do: what this step does, in the language of the request, with its figures and names.\n"
    "- after: the ids of the earlier steps whose results this step needs. What needs no other result has []: such "
    "steps run at the same time.\n"
    '- tool: "think": a model writes, translates, summarises, compares, explains or tells what it knows. %sA name from '
    "TOOLS, with its input, only where the request asks for just that; in the input ${s1.output} stands for the whole "
    "result of s1: never write the result yourself.\n"
    "- One step for each part of the request. The last step makes the whole answer of the results before it.\n"
    '- Only if nobody could know what is meant: {"intent":"…","questions":["…"],"subtasks":[]}.'
)
_CODE_RULE: Final = '"code": a program is written and run: for arithmetic, counting, sorting and dates. '
_EXAMPLE_EN: Final = (
    "Explain in one sentence what interest is, work out which loan is cheaper, 9000 at 4 % over 3 years or at 3 % over "
    "5 years, and mail both to a@x.org.",
    '{"intent":"explain interest, compare two loans, mail it","subtasks":['
    '{"id":"s1","do":"Explain in one sentence what interest is","after":[],"tool":"think"},'
    '{"id":"s2","do":"Compute the interest of 9000 at 4 % over 3 years","after":[],"tool":"code"},'
    '{"id":"s3","do":"Compute the interest of 9000 at 3 % over 5 years","after":[],"tool":"code"},'
    '{"id":"s4","do":"Write the mail: what interest is, and which loan is cheaper","after":["s1","s2","s3"],'
    '"tool":"think"},'
    '{"id":"s5","do":"Mail it to a@x.org","after":["s4"],"tool":'
    '{"name":"mail.send","input":{"to":"a@x.org","body":"${s4.output}"}}}]}',
)
_EXAMPLE_ZH: Final = (
    "用一句话解释什么是利息，算出9000元利率4%三年和利率3%五年哪个贷款更便宜，把两者发邮件到 a@x.org",
    '{"intent":"解释利息，比较两种贷款，发邮件","subtasks":['
    '{"id":"s1","do":"用一句话解释什么是利息","after":[],"tool":"think"},'
    '{"id":"s2","do":"计算9000元利率4%三年的利息","after":[],"tool":"code"},'
    '{"id":"s3","do":"计算9000元利率3%五年的利息","after":[],"tool":"code"},'
    '{"id":"s4","do":"写邮件：什么是利息，哪个贷款更便宜","after":["s1","s2","s3"],"tool":"think"},'
    '{"id":"s5","do":"发邮件到 a@x.org","after":["s4"],"tool":'
    '{"name":"mail.send","input":{"to":"a@x.org","body":"${s4.output}"}}}]}',
)


def small_messages(
    prompt: str, tools: Sequence[ToolView], *, context: JsonObject, language: str, with_code: bool
) -> tuple[Message, ...]:
    """As `plan_messages`, for a small model."""
    asked, answered = _EXAMPLE_ZH if language == "zh" else _EXAMPLE_EN
    if not with_code:
        answered = answered.replace(f'"tool":"{CODE}"', f'"tool":"{THINK}"')
    rules = _RULES % (_CODE_RULE if with_code else "")
    offered = "\n".join(map(signature, tools))
    parts = [f"TOOLS\n{offered}"] if tools else []
    if context:
        parts.append(f"CONTEXT\n{context_text(context)}")
    parts.append(f"REQUEST\n{prompt}")
    return (
        Message(speaker="system", text=f"{rules}\nExample:\n{asked}\n{answered}"),
        Message(speaker="user", text="\n\n".join(parts)),
    )


def small_schema(
    tools: Sequence[ToolView], *, with_code: bool, before: Collection[str] | None = None, done: Sequence[str] = ()
) -> JsonObject:
    """What an answer is that plans with these tools, and code where it may: questions, or at most eight steps.

    ``before``: ids of the plan that it is added to, where there is one: then nothing is an answer, too. ``done``: those
    of them that steps may come after.
    """
    line: JsonObject = {"type": "string", "minLength": 1, "maxLength": MAX_CHARS}
    own: list[Json] = [THINK, *([CODE] if with_code else [])]
    calls = [_closed({"name": {"const": tool.name}, "input": _input(tool.schema)}) for tool in tools]
    shared: JsonObject = {
        "do": {"type": "string", "minLength": 1, "maxLength": MAX_DO_CHARS},
        "tool": {"anyOf": [{"enum": own}, *calls]},
    }
    names = list(islice((name for name in map("s{}".format, count(1)) if name not in (before or ())), MAX_STEPS))
    lists: list[Json] = [
        {"type": "array", "prefixItems": list(map(_of, names[:size])), "minItems": size, "maxItems": size}
        for size in range(1, MAX_STEPS + 1)
    ]
    asks: JsonObject = {"type": "array", "minItems": 1, "maxItems": MAX_QUESTIONS, "items": line}
    nothing: JsonObject = {"type": "array", "maxItems": 0}
    return {
        "$defs": {**shared, **{name: _step(name, [*done, *names[:place]]) for place, name in enumerate(names)}},
        "anyOf": [
            _closed({"intent": line, "subtasks": {"anyOf": lists}}),
            _closed({"intent": line, "questions": asks, "subtasks": nothing}),
            *([] if before is None else [_closed({"intent": line, "subtasks": nothing})]),
        ],
    }


def _step(name: str, earlier: Sequence[str]) -> JsonObject:
    after: JsonObject = {"type": "array", "maxItems": len(earlier)}
    if earlier:
        after["items"] = {"enum": list(earlier)}
    return _closed({"id": {"const": name}, "do": _of("do"), "after": after, "tool": _of("tool")})


def _input(schema: Mapping[str, Any]) -> JsonObject:
    """The input of a tool, as far as a grammar should know it: verification judges the rest."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return {"type": "object"}
    required = schema.get("required")
    needed = [name for name in required if name in properties] if isinstance(required, (list, tuple)) else []
    # Of several ways the first, or all would be written at once.
    ways = next((schema[name] for name in ("oneOf", "anyOf") if isinstance(schema.get(name), (list, tuple))), ())
    wanted = [way.get("required", ()) for way in ways if isinstance(way, Mapping)]
    needed += [name for name in (wanted[0] if wanted else ()) if name in properties and name not in needed]
    others = {name for each in wanted[1:] for name in each} - set(needed)
    names = needed + [name for name in properties if name not in needed and name not in others]
    members: JsonObject = {name: _value(properties[name]) for name in names[:_MAX_MEMBERS]}
    return {"type": "object", "properties": members, "required": list(needed), "additionalProperties": False}


def _value(schema: Any) -> JsonObject:
    """A value of an input: a text that may hold references, or a value of its type or a reference."""
    kind = kind_of(schema)
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(choices, (list, tuple)) and choices:
        return {"enum": list(choices)}
    if kind == "string":
        return {"type": "string"}
    if kind is None:
        return {}
    reference = _closed({REF: {"type": "string", "maxLength": MAX_CHARS}})
    plain: JsonObject = {"type": kind}
    if kind == "array":
        plain["items"] = _value(schema.get("items"))
    return {"anyOf": [plain, reference]}


def kind_of(schema: Any) -> str | None:
    """The type of a value where there is one beside null."""
    if not isinstance(schema, Mapping):
        return None
    kind = schema.get("type")
    if isinstance(kind, str):
        return kind
    kinds = list(kind) if isinstance(kind, (list, tuple)) else [kind_of(each) for each in schema.get("anyOf", ())]
    left = [each for each in kinds if each != "null"]
    return left[0] if len(left) == 1 else None


def _closed(properties: JsonObject) -> JsonObject:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _of(name: str) -> JsonObject:
    return {"$ref": f"#/$defs/{name}"}
