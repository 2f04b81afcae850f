"""Shards, and the rows and batches that are read from them."""
