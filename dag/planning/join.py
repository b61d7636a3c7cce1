"""The joiner: the last subtask of a plan, which answers the whole request of what has come of the others.

It may say instead what the answer still needs; then the plan grows, and another joiner answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from rayloom.dag.planning.names import numbered
from rayloom.dag.planning.passed import result_of
from rayloom.dag.planning.written import above, by_id, ids_of, input_of, needed, needs_of
from rayloom.dag.references import REF, scan
from rayloom.dag.values import Json, JsonObject

ANSWER: Final = "answer"
MORE: Final = "more"
MAX_ANSWER_CHARS: Final = 400
_WANTED: Final = (
    "Answer the whole request with the results in the input, in its language. `answer`: the whole answer. `more`: "
    "null, but where the results do not suffice and more work could help: what is still to be found out or done."
)
_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "properties": {ANSWER: {"type": "string"}, MORE: {"type": ["string", "null"]}},
    "required": [ANSWER, MORE],
    "additionalProperties": False,
}


def wanted_answer(answer: JsonObject) -> str:
    """What a model said that the whole answer must be; empty where it wants none."""
    said = answer.get(ANSWER)
    return " ".join(said.split())[:MAX_ANSWER_CHARS] if isinstance(said, str) else ""


def join(subtasks: Sequence[JsonObject], wanted: str, told: JsonObject) -> tuple[list[JsonObject], str]:
    """The subtasks of a sound plan with a joiner that answers what is ``wanted``, and its id.

    Where a model does the only last one already, it is the joiner: a second one would say the same again. ``told``:
    what the input of all that a model does has besides.
    """
    sinks = _sinks(subtasks)
    if len(sinks) == 1 and _can_answer(sinks[0]):
        # `told` is in its input already.
        joiner = {**sinks[0], **_joiner(f"{sinks[0]['instruction']}\n{wanted}", input_of(sinks[0]))}
        return [joiner if each is sinks[0] else each for each in subtasks], str(joiner["id"])
    return _appended(subtasks, sinks, wanted, told)


def join_again(
    before: Sequence[JsonObject], added: Sequence[JsonObject], joiner: str, done: Collection[str], told: JsonObject
) -> tuple[list[JsonObject], str]:
    """What is added to a plan whose joiner wanted more, or never ran, with a joiner that takes its place, and its id.

    It sees what the old one saw and said, as far as that is ``done``, and the new results.
    """
    old = next(each for each in before if each["id"] == joiner)
    known = by_id(before)
    seen = [known[name] for name in needed(old, known) if name in done]
    seen += [old] if joiner in done else []
    whole, id_ = _appended([*before, *added], [*seen, *_sinks(added)], str(old["instruction"]), told)
    return whole[len(before) :], id_


def with_results(
    subtasks: Sequence[JsonObject], *, before: Sequence[JsonObject] = (), done: Collection[str] = ()
) -> list[JsonObject]:
    """The subtasks of a sound plan, those that have the last word seeing the results of all that they come after.

    Of what models and programs have found, that is, though it be some steps away: models name the last step alone.
    ``before``: subtasks that these are added to, of which those that are ``done`` may be used.
    """
    known = by_id((*before, *subtasks))
    needs, unusable = needs_of(known), set(ids_of(before)).difference(done)
    last = [each["id"] for each in _sinks(subtasks) if each["type"] == "REASONING"]
    found: list[JsonObject] = []
    for each in subtasks:
        if each["id"] in last:
            given = input_of(each)
            seen = {reference.subtask for reference in scan(given, known).references}
            far = above(str(each["id"]), needs) - seen - unusable - given.keys()
            results: JsonObject = {
                name: {REF: f"{name}.output{result_of(known[name])}"}
                for name in known
                if name in far and result_of(known[name])
            }
            if results:
                each = {**each, "input": {**given, **results}}
        found.append(each)
    return found


def _appended(
    subtasks: Sequence[JsonObject], seen: Sequence[JsonObject], wanted: str, told: JsonObject
) -> tuple[list[JsonObject], str]:
    id_ = numbered(ANSWER, ids_of(subtasks))
    results: JsonObject = {str(each["id"]): {REF: f"{each['id']}.output{result_of(each)}"} for each in seen}
    return [*subtasks, {"id": id_, "name": "Answer", **_joiner(wanted, {**told, **results})}], id_


def _joiner(wanted: str, given: Mapping[str, Json]) -> JsonObject:
    instruction = wanted if wanted.endswith(_WANTED) else f"{wanted}\n{_WANTED}"
    return {"type": "REASONING", "instruction": instruction, "input": {**given, "output_schema": _SCHEMA}}


def _can_answer(sink: JsonObject) -> bool:
    return sink["type"] == "REASONING" and "output_schema" not in input_of(sink)


def _sinks(subtasks: Sequence[JsonObject]) -> list[JsonObject]:
    followed = {name for names in needs_of(by_id(subtasks)).values() for name in names}
    return [each for each in subtasks if each["id"] not in followed]
