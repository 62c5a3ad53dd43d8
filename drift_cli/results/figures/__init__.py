"""Figures of a run, from its `RunTable`: matplotlib's Agg, SVG and PDF canvases, never pyplot's global state. No store but for the final write, no torch."""
