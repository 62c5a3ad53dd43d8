"""Slots over one pool of pages, with CUDA graphs."""
