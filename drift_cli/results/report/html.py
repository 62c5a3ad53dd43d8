"""The report's page: one HTML file with its data, looks and script in it, and a policy under which nothing else can be loaded or run.

The data is JSON, deflated, in base64: its letters cannot end an element or begin one, whatever the conversations hold. The script makes elements one by one
and puts text into text nodes only; the policy names the script and the style by their hashes, forbids every load, and forbids turning strings into markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import orjson

SCRIPTS = ("dom", "data", "colours", "chart", "reader", "tables", "search", "main")
"""In the order in which they are joined."""


def page(document: Mapping[str, Any], *, title: str, generator: str) -> bytes:
    """The file's content. The same document gives the same bytes with the same zlib."""
    parts = files("drift_cli.results.report") / "page"
    style = (parts / "style.css").read_text(encoding="utf-8")
    code = "\n".join((parts / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n{code}'
    data = base64.b64encode(zlib.compress(orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS), 9)).decode()
    made = (parts / "page.html").read_text(encoding="utf-8")
    values = {
        "POLICY": policy(script, style),
        "GENERATOR": html.escape(generator),
        "TITLE": html.escape(title),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data,
    }
    for name, value in values.items():
        made = made.replace(f"@{name}@", value)
    return made.encode()


def policy(script: str, style: str) -> str:
    """What the page may do: run this script, use this style, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
