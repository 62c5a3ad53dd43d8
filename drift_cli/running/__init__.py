"""Conversations, engine and store together: what makes the rollouts of a run."""
