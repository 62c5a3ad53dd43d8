"""Runs in and out: the seed experiment's JSON both ways, tables (CSV, Parquet) and conversations that other tools read. No torch.

What a source does not say is never invented: it is recorded in the manifest as assumed. Everything is checked before anything is written, and every file
is written whole or not at all.
"""

from __future__ import annotations

from drift_cli.interchange.conversations import export_assistant_axis
from drift_cli.interchange.seed_export import export_seed
from drift_cli.interchange.seed_import import UNKNOWN_LAYER, import_seed
from drift_cli.interchange.tables import export_csv, export_parquet

__all__ = ["UNKNOWN_LAYER", "export_assistant_axis", "export_csv", "export_parquet", "export_seed", "import_seed"]
