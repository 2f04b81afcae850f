"""Checkpoints: written, read, restored, described, exported."""
