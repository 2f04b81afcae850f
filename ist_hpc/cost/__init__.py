"""The cost of a run, computed before it starts: bytes, memory, operations."""
