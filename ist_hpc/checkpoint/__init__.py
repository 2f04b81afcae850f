"""Checkpoints: written, read, restored."""
