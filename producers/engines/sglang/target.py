"""The weights that servers are to hold, and the label under which a server reports them: equal labels mean equal weights."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from common.messages import Version, WeightManifest

_LABEL = re.compile(r"t(\d+)-s(\d+)-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Target:
    """A full, local directory that the servers can read under the same path."""

    version: Version
    label: str
    directory: Path


def named_by(label: str) -> Version | None:
    """The version in a label that a producer made, this one or a fellow of it; None: the server got its weights from somebody else."""
    found = _LABEL.fullmatch(label)
    return Version(int(found[1]), int(found[2])) if found else None


def target_of(manifest: WeightManifest, directory: Path) -> Target:
    """A published version."""
    content = repr((sorted(manifest.tensors.items()), [tuple(file) for file in manifest.files]))
    return Target(manifest.version, _label(manifest.version, content), directory.absolute())


def first_target(student: Path) -> Target:
    """The student as it was before the run. Of its files the times tell, not the bytes: they may be hundreds of gigabytes."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(student.glob("*.safetensors"))]
    return Target(Version(0, 0), _label(Version(0, 0), repr((str(student), facts))), student)


def _label(version: Version, content: str) -> str:
    return f"t{version.term}-s{version.step}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
