"""A table as text for a paper. `Table`s go to Markdown and LaTeX; CSV is made of records, a line each, with all digits."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from drift_cli.display import Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "√": r"$\surd$", "≤": r"$\leq$", "≥": r"$\geq$",
    "²": "$^2$", "½": r"$\frac12$", "—": "---", "–": "--", "′": "$'$", "…": r"\ldots{}",
}  # fmt: skip
_NEGATIVE = re.compile(r"(?<![\w.])-(?=[\d.])")
"""A minus sign, as opposed to a hyphen."""


class Format(StrEnum):
    """How a result is written."""

    TABLE = "table"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


def markdown(table: Table) -> str:
    """A pipe table under its title in bold, its notes below."""
    heads = [head.rstrip(">") for head in table.heads]
    rules = ["---:" if head.endswith(">") else "---" for head in table.heads]
    lines = ["| " + " | ".join(_pipes(cell) for cell in row) + " |" for row in (heads, rules, *table.rows)]
    notes = [f"- {_pipes(note)}" for note in table.notes]
    return "\n".join([f"**{_pipes(table.title)}**", "", *lines, *(["", *notes] if notes else []), ""])


def _pipes(text: str) -> str:
    return re.sub(r"([\\|*_<`])", r"\\\1", text).replace("\n", " ")


def latex(table: Table) -> str:
    r"""A `table` with booktabs rules, its title as the caption and its notes in small type; needs `\usepackage{booktabs}`, compiles with any engine."""
    columns = "".join("r" if head.endswith(">") else "l" for head in table.heads)
    heads = [head.rstrip(">") for head in table.heads]
    lines = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in (heads, *table.rows)]
    notes = [r"\par\smallskip\raggedright\footnotesize", *(_escaped(note) + r"\par" for note in table.notes)] if table.notes else []
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in _NEGATIVE.sub("−", text).replace("\n", " "))


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as one table (RFC 4180): every key a column, in the order in which they first appear, empty where a record does not have it."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in record.items()} for record in records)
    return out.getvalue()
