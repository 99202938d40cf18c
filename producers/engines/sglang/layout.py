"""Names and shapes of the tensors in a directory, from the headers alone. Weights of another layout never reach a server: it would die of
other shapes, and would take a part of a model without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from common.errors import WeightsError

_MOST_BYTES = 1 << 26
_TIED = "lm_head.weight"  # may be left out of a file, or be there twice, where it is the embedding

Layout = Mapping[str, tuple[int, ...]]


def layout_of(directory: Path) -> Layout:
    """Of all safetensors files. Raises WeightsError."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{directory} has no .safetensors files")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length)) if length <= _MOST_BYTES else {}
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{file} cannot be read as safetensors: {error}") from None
    return shapes


def check_layout(new: Layout, student: Layout, directory: Path) -> None:
    """Raises WeightsError where `new` are not the student's full weights."""
    for name in sorted((new.keys() | student.keys()) - {_TIED}):
        if name not in student:
            raise WeightsError(f"{directory} has {name}, which the student has not")
        if name not in new:
            raise WeightsError(f"{directory} lacks {name}")
        if new[name] != student[name]:
            raise WeightsError(f"{directory} has {name} as {list(new[name])}, the student as {list(student[name])}")
