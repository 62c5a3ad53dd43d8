"""Experiments that come with drift, as drift.toml files."""
