"""Axes: unit directions in residual space, one per layer. Built from personas, kept in files, imported, exported, looked at."""

from drift_cli.axes.axis import Axis
from drift_cli.axes.files import DEMO, demo_axis, find, load, save
from drift_cli.axes.torch_files import import_torch

__all__ = ["DEMO", "Axis", "demo_axis", "find", "import_torch", "load", "save"]
