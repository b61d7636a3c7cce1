"""Front matters, good and bad, as the Agent Skills specification has them."""

from __future__ import annotations

import pickle

import pytest

from rayloom.tools.skills.front_matter import MAX_CHARS, FrontMatter, InvalidSkill, read

NAME = "name: a-skill\n"
DESCRIPTION = "description: Does things.\n"
PLAIN = NAME + DESCRIPTION


def head(text: str) -> str:
    return f"---\n{text}---\nDo it.\n"


GOOD = {
    "least": PLAIN,
    "one letter": "name: a\n" + DESCRIPTION,
    "digits alone": "name: 123\n" + DESCRIPTION,
    "starts with a digit": "name: 7-zip\n" + DESCRIPTION,
    "longest name": f"name: {'a' * 64}\n" + DESCRIPTION,
    "quoted name": "name: 'a-skill'\n" + DESCRIPTION,
    "longest description": NAME + f"description: {'x' * 1024}\n",
    "description of many bytes": NAME + f"description: {'語' * 1024}\n",
    "folded description": NAME + "description: >-\n  Does things.\n  Use when: asked.\n",
    "literal description": NAME + f"description: |\n  {'x' * 1024}\n",
    "quoted colon": NAME + 'description: "Use when: asked"\n',
    "a word that YAML takes for a truth value": NAME + "description: yes\n",
    "a license": PLAIN + "license: Apache-2.0\n",
    "a license in words": PLAIN + "license: Proprietary. LICENSE.txt has complete terms\n",
    "longest compatibility": PLAIN + f"compatibility: {'x' * 500}\n",
    "metadata": PLAIN + 'metadata:\n  author: example-org\n  version: "1.0"\n',
    "metadata whose number is not quoted": PLAIN + "metadata:\n  version: 1.0\n",
    "metadata in braces": PLAIN + "metadata: {author: me}\n",
    "no metadata in it": PLAIN + "metadata: {}\n",
    "allowed tools": PLAIN + "allowed-tools: Bash(git:*) Bash(jq:*) Read\n",
    "a comment": "# what this is\n" + PLAIN,
    "fields in another order": DESCRIPTION + "license: MIT\n" + NAME,
}
BAD = {
    "no name": (DESCRIPTION, ["name: is missing"]),
    "no description": (NAME, ["description: is missing"]),
    "nothing at all": ("", ["must be a YAML mapping"]),
    "a list": ("- name\n", ["must be a YAML mapping"]),
    "mere text": ("name\n", ["must be a YAML mapping"]),
    "empty name": ("name:\n" + DESCRIPTION, ["name: must have 1 to 64 characters, not 0"]),
    "empty quoted name": ("name: ''\n" + DESCRIPTION, ["name: must have 1 to 64"]),
    "name too long": (f"name: {'a' * 65}\n" + DESCRIPTION, ["name: must have 1 to 64 characters, not 65"]),
    "capitals": ("name: PDF-Processing\n" + DESCRIPTION, ["name: must consist of lowercase letters"]),
    "underscore": ("name: my_skill\n" + DESCRIPTION, ["name: must consist of"]),
    "space": ("name: my skill\n" + DESCRIPTION, ["name: must consist of"]),
    "dot": ("name: my.skill\n" + DESCRIPTION, ["name: must consist of"]),
    "slash": ("name: ../skill\n" + DESCRIPTION, ["name: must consist of"]),
    "other letters": ("name: навык\n" + DESCRIPTION, ["name: must consist of"]),
    "letters that look alike": ("name: \uff50\uff44\uff46\n" + DESCRIPTION, ["name: must consist of"]),
    "a line's end in the name": ('name: "a\\n"\n' + DESCRIPTION, ["name: must consist of"]),
    "leading hyphen": ("name: -pdf\n" + DESCRIPTION, ["name: must not start or end"]),
    "trailing hyphen": ("name: pdf-\n" + DESCRIPTION, ["name: must not start or end"]),
    "two hyphens": ("name: pdf--processing\n" + DESCRIPTION, ["name: must not contain consecutive"]),
    "name is a list": ("name: [a]\n" + DESCRIPTION, ["name: must be text"]),
    "name is a mapping": ("name: {a: b}\n" + DESCRIPTION, ["name: must be text"]),
    "empty description": (NAME + "description:\n", ["description: must have 1 to 1024"]),
    "blank description": (NAME + "description: '   '\n", ["description: must have 1 to 1024"]),
    "description too long": (NAME + f"description: {'x' * 1025}\n", ["description: must have 1 to 1024 characters"]),
    "description is a list": (NAME + "description: [a]\n", ["description: must be text"]),
    "empty compatibility": (PLAIN + "compatibility:\n", ["compatibility: must have 1 to 500"]),
    "compatibility too long": (PLAIN + f"compatibility: {'x' * 501}\n", ["compatibility: must have 1 to 500"]),
    "license is a mapping": (PLAIN + "license: {name: MIT}\n", ["license: must be text"]),
    "metadata is text": (PLAIN + "metadata: me\n", ["metadata: must be a mapping"]),
    "metadata is a list": (PLAIN + "metadata: [me]\n", ["metadata: must be a mapping"]),
    "metadata holds a list": (PLAIN + "metadata: {tags: [a]}\n", ["metadata.tags: must be text"]),
    "metadata holds a mapping": (PLAIN + "metadata: {a: {b: c}}\n", ["metadata.a: must be text"]),
    "allowed tools are a list": (PLAIN + "allowed-tools: [Read]\n", ["allowed-tools: must be text"]),
    "an unknown field": (PLAIN + "author: me\n", ["author: is no field of the specification"]),
    "a misspelt field": (PLAIN + "allowed_tools: Read\n", ["allowed_tools: is no field", "allowed-tools"]),
    "a field twice": (NAME + PLAIN, ["name: is given twice"]),
    "an unquoted colon": (NAME + "description: Use when: asked\n", ["not valid YAML in line 3"]),
    "a tab": (NAME + "metadata:\n\ta: b\n", ["not valid YAML"]),
    "an unclosed quote": (NAME + 'description: "x\n', ["not valid YAML"]),
    "an alias": (NAME + "description: &d x\nlicense: *d\n", ["anchors and aliases"]),
    "a tag": (NAME + "description: !!python/object:os.system x\n", ["tags are not taken"]),
    "two documents": (PLAIN + "--- {}\n", ["not valid YAML"]),
    "deep nesting": (PLAIN + "metadata: " + "[" * 40 + "]" * 40 + "\n", ["nested deeper"]),
    "far too deep nesting": (PLAIN + "metadata: " + "[" * 30_000 + "\n", ["nested deeper"]),
    "a key that is a list": (PLAIN + "[a, b]: c\n", ["keys of the front matter must be text"]),
    "a NUL": (NAME + 'description: "a\\0b"\n', ["description: must not contain NUL"]),
    "a lone surrogate": (NAME + 'description: "\\ud800"\n', ["description: must not contain NUL or lone"]),
    "too much": (PLAIN + "# " + "x" * MAX_CHARS + "\n", ["more than 65,536 characters"]),
    "everything wrong": (
        "name: -My--Skill-\nmetadata: x\nversion: 1\n",
        ["lowercase", "start or end", "consecutive", "metadata:", "version:", "description: is missing"],
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in GOOD.items()])
def test_what_the_specification_allows_is_taken(text: str) -> None:
    about, instructions = read(head(text))
    assert about.description
    assert instructions == "Do it."


@pytest.mark.parametrize(("text", "said"), [pytest.param(*each, id=name) for name, each in BAD.items()])
def test_what_it_forbids_is_refused_with_every_fault(text: str, said: list[str]) -> None:
    with pytest.raises(InvalidSkill) as caught:
        read(head(text))
    told = "\n".join(caught.value.faults)
    assert [each for each in said if each not in told] == []
    assert caught.value.code == "SKILL_INVALID"


def test_all_fields_are_kept_as_they_were_written() -> None:
    text = PLAIN + (
        "license: MIT\ncompatibility: Requires Python 3.14+\nmetadata:\n  version: 1.0\n  on: yes\n"
        "allowed-tools: Bash(git add:*)  Read mcp__x\n"
    )
    about, _ = read(head(text))
    assert about == FrontMatter(
        name="a-skill",
        description="Does things.",
        license="MIT",
        compatibility="Requires Python 3.14+",
        metadata={"version": "1.0", "on": "yes"},
        allowed_tools=("Bash(git add:*)", "Read", "mcp__x"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "# A heading\n",
        "",
        f"\n---\n{PLAIN}---\n",
        f" ---\n{PLAIN}---\n",
        f"----\n{PLAIN}---\n",
        f"---\n{PLAIN}",
        f"---\n{PLAIN} ---\n",
        f"---\n{PLAIN}----\n",
    ],
)
def test_without_its_fences_it_is_no_front_matter(text: str) -> None:
    with pytest.raises(InvalidSkill, match="front matter"):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        f"---\n{PLAIN}---\n# Title\n\n---\n\nmore\n",
        f"---\n{PLAIN}---\n# Title\n\n---\n\nmore\n".replace("\n", "\r\n"),
        f"\ufeff---\n{PLAIN}---  \n\n\n# Title\n\n---\n\nmore",
    ],
)
def test_the_instructions_are_all_that_follows(text: str) -> None:
    assert read(text)[1] == "# Title\n\n---\n\nmore"


def test_a_skill_may_have_no_instructions() -> None:
    assert read(f"---\n{PLAIN}---")[1] == ""


def test_its_faults_cross_processes() -> None:
    error: InvalidSkill = pickle.loads(pickle.dumps(InvalidSkill(("a", "b"))))
    assert error.faults == ("a", "b")
