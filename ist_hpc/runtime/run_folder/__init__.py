"""The folder of a run: its settings, its progress, its end. Written by rank 0.

config.yaml    the resolved configuration
run.json       versions, MPI, host, git, command; one entry a start
metrics.jsonl  one row per round and per evaluation, flushed
summary.json   at the end
STATUS         starting | running | finished | stopped: by what | failed: why
.lock          held by rank 0 as long as the run goes on; names the holder
checkpoints/   round-00000040/ ...
"""
