"""What a run's numbers say: the run as tidy arrays, its summary, comparisons of conditions, flagged replies. numpy and scipy only; no torch, no terminal.

The unit of inference is the rollout, everywhere.
"""
