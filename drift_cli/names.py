"""Names that may stand in file names, and digests of JSON values."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import orjson

from drift_cli.errors import UsageError

CONTENT = "tree1:"
"""How the revision of local weights begins: a digest of their whole content (`models/identity.py`), whatever the folder is called."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def checked_name(kind: str, name: str) -> str:
    """Return `name` if it can stand in a file name on every system; raise `UsageError` otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{kind} name {name!r} cannot be used",
            mend="Use 1 to 80 letters, digits, '.', '_' or '-', beginning with a letter or digit.",
        )
    return name


def brief(revision: str) -> str:
    """A revision as it is shown where there is little room: 12 digits."""
    return revision.removeprefix(CONTENT)[:12]


def plain_name(text: str) -> str:
    """A name made from any text: lower case, and only what may stand in a file name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60] or "run"


def shortened_name(transcript: str, turns: int) -> str:
    """What the first `turns` user turns of a transcript are called, so that they and the whole can be in one run: `lonely-6`."""
    suffix = f"-{turns}"
    return transcript[: 80 - len(suffix)] + suffix


def at_layer(axis: str, layer: int) -> str:
    """What a run calls an axis that it has at another layer already: `demo@3`. No axis can have such a name of its own."""
    return f"{axis}@{layer}"


def split_layer(name: str) -> tuple[str, int | None]:
    """The axis and the layer of `demo@3`; `demo` names no layer. `UsageError` where what stands behind the @ is no layer."""
    axis, sign, layer = name.partition("@")
    if sign and not (layer.isascii() and layer.isdecimal()):
        raise UsageError(f"{name!r} names no layer of an axis", mend="Write the axis and the layer, such as demo@3.")
    return axis, int(layer) if sign else None


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
