"""Slots in plain torch, on any device."""
