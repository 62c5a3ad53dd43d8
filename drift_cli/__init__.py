"""drift measures how far a chat model drifts from its assistant persona over a conversation, and what prevents it."""

__version__ = "0.1.0"
