"""A run on disk: its manifest, its rollouts turn by turn, its events. No torch.

What is acknowledged is on disk; what is damaged is named and never read as if it were whole; what belongs to something else is refused. Each module's
docstring says its part: `run` is the door, `log` writes one rollout, `reader` reads it, `line` is the format of its lines, `verify` checks everything.
"""
