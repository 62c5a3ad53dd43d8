"""Rollout engines: token ids in, turns out. See `contract`."""
