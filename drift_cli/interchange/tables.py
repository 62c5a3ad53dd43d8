"""A run as a long table, one row to a turn: CSV for everything, Parquet with types and the run's identity in its metadata.

| column | |
| --- | --- |
| run, transcript, condition, temperature, sample, turn | which turn; samples from 0, turns from 1 |
| user, reply, finish | the texts and why the reply ended; a turn before which the rollout ended has finish `context` or `template` and no reply |
| prompt_length, reply_tokens | in tokens; the reply's end-of-turn token counts. Missing in imported runs |
| reasoning, answer_tokens, reasoning_tokens | only where replies may have segments: the reasoning's text (`reply` is the answer's), and tokens without markup |
| segment | only there: the part that projections and residual means are of |
| projection_<axis> | one column to each axis |
| residual_<layer> | Parquet only, on request: the reply's mean residual at that layer, float32 |
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drift_cli
from drift_cli.errors import StoreError
from drift_cli.files import atomic_write, create_folder
from drift_cli.interchange.rows import Row, axes_of, rows
from drift_cli.segments import Part

if TYPE_CHECKING:
    import pyarrow as pa

    from drift_cli.store.manifest import AxisEntry
    from drift_cli.store.run import Run

_COLUMNS = (
    "run",
    "transcript",
    "condition",
    "temperature",
    "sample",
    "turn",
    "user",
    "reply",
    "finish",
    "prompt_length",
    "reply_tokens",
)
WHOLE = {
    **dict.fromkeys(("sample", "turn"), "int64"),
    **dict.fromkeys(("prompt_length", "reply_tokens", "answer_tokens", "reasoning_tokens"), "Int64"),
}
"""Columns of whole numbers, by pandas' types: `Int64` may lack some."""
_SEGMENT_COLUMNS = ("reasoning", "answer_tokens", "reasoning_tokens", "segment")


def export_csv(run: Run, path: Path, *, axes: Sequence[str] | None = None, part: Part = Part.ANSWER) -> Path:
    """Write the table as CSV (RFC 4180, UTF-8): what is missing is an empty field, numbers read back to the same bits.

    Args:
        run: the run.
        path: the file, replaced if it exists.
        axes: names of the axes to give columns; all for None.
        part: what of each reply projections are of, where replies have segments.
    """
    entries = axes_of(run, axes)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*columns(run), *(f"projection_{entry.name}" for entry in entries)])
    writer.writerows((*fields(run, row, part), *row.projections) for row in rows(run, entries, part=part))
    create_folder(path.parent)
    atomic_write(path, text.getvalue().encode())
    return path


def export_parquet(run: Run, path: Path, *, axes: Sequence[str] | None = None, residuals: bool = False, part: Part = Part.ANSWER) -> Path:
    """Write the table as Parquet, a row group to each cell, the run's identity as JSON in the schema's metadata.

    Args:
        run: the run.
        path: the file, replaced if it exists.
        axes: names of the axes to give columns; all for None.
        residuals: add a list<float32> column of width numbers for each stored layer.
        part: what of each reply projections and residual means are of, where replies have segments.

    Raises:
        StoreError: residuals are asked of a run that has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    layers = run.manifest.layers if residuals else ()
    if residuals and not layers:
        raise StoreError(f"run {run.paths.run_id} has no residuals", mend="Export it without --residuals.")
    entries = axes_of(run, axes)
    schema = _schema(run, entries, layers, part)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for _, group in groupby(rows(run, entries, residuals=residuals, part=part), key=lambda row: row.rollout.cell):
            writer.write_table(_cell(run, group, schema, len(layers), part))
    create_folder(path.parent)
    atomic_write(path, sink.getvalue().to_pybytes())
    return path


def columns(run: Run) -> tuple[str, ...]:
    """Names of the columns before projections: those of segments only where the run's replies may have some."""
    return _COLUMNS + _SEGMENT_COLUMNS if run.manifest.segments else _COLUMNS


def fields(run: Run, row: Row, part: Part) -> tuple[Any, ...]:
    """A row's values in the order of `columns`."""
    cell = row.rollout.cell
    where = (run.paths.run_id, cell.transcript, cell.condition, cell.temperature, row.rollout.sample, row.turn)
    plain = (*where, row.user, row.reply, row.finish, row.prompt_length, row.reply_tokens)
    return (*plain, row.reasoning, *row.tokens, part.value) if run.manifest.segments else plain


def _schema(run: Run, entries: Sequence[AxisEntry], layers: Sequence[int], part: Part) -> pa.Schema:
    import pyarrow as pa

    kinds = {"temperature": pa.float64(), **dict.fromkeys(WHOLE, pa.int32())}
    missing = {"reply", "prompt_length", "reply_tokens", "reasoning", "answer_tokens", "reasoning_tokens"}
    typed = [pa.field(name, kinds.get(name, pa.string()), nullable=name in missing) for name in columns(run)]
    typed += [pa.field(f"projection_{entry.name}", pa.float64()) for entry in entries]
    typed += [pa.field(f"residual_{layer}", pa.list_(pa.float32())) for layer in layers]
    return pa.schema(typed, metadata=_metadata(run, entries, part))


def _metadata(run: Run, entries: Sequence[AxisEntry], part: Part) -> dict[str, str]:
    """What makes the numbers comparable, in JSON: pandas and polars keep it, and so does a copy of the file."""
    return {f"drift.{key}": json.dumps(value, ensure_ascii=False) for key, value in known(run, entries, part).items()}


def known(run: Run, entries: Sequence[AxisEntry], part: Part) -> dict[str, Any]:
    """What makes a run's numbers comparable with others', as JSON values."""
    spec, manifest = run.manifest.spec, run.manifest
    conditions = {name: {"system": made.system, "placement": made.placement.value} for name, made in manifest.conditions.items()}
    return {
        "run": run.paths.run_id,
        "version": drift_cli.__version__,
        "model": {"name": spec.model, "revision": spec.identity, "dtype": spec.dtype},
        "axes": {entry.name: {"layer": entry.layer, "digest": entry.digest, "note": entry.note} for entry in entries},
        "conditions": conditions,
        "transcripts": {name: transcript.digest for name, transcript in manifest.transcripts.items()},
        "seed": spec.seed,
        **({"segment": part.value} if manifest.segments else {}),
    }


def _cell(run: Run, group: Iterator[Row], schema: pa.Schema, layers: int, part: Part) -> pa.Table:
    """The rows of one cell as a table."""
    import pyarrow as pa

    made = list(group)
    arrays = [
        pa.array(values, field.type)
        for values, field in zip(zip(*(fields(run, row, part) for row in made), strict=True), schema, strict=False)
    ]
    scored = [row.projections for row in made]
    arrays += [pa.array(values, pa.float64()) for values in zip(*scored, strict=True)]
    arrays += [
        pa.array([None if row.residual is None else row.residual[at] for row in made], pa.list_(pa.float32())) for at in range(layers)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
