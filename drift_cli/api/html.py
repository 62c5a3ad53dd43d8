"""What notebooks show of a run, a study and a verdict. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def facts(title: str, rows: Mapping[str, str]) -> str:
    """A table of two columns under a title."""
    lines = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption>{lines}</table>"


def paragraphs(texts: Iterable[str], small: Iterable[str] = ()) -> str:
    """Paragraphs, and others in small print below them."""
    said = "".join(f"<p>{escape(text)}</p>" for text in texts)
    return said + "".join(f"<p><small>{escape(text)}</small></p>" for text in small)
