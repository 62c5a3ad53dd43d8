"""The engine contract as tests: one for each numbered clause of `drift_cli/engine/contract.py`, asked of every engine."""
