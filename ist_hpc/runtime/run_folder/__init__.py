"""The folder of a run: what it was, how it goes, how it ended. Written by rank 0.

config.yaml    the resolved configuration
run.json       versions, MPI, host, git, command; one entry a start
metrics.jsonl  a row a round and a row an evaluation, flushed
summary.json   at the end
STATUS         starting | running | finished | stopped: by what | failed: why
.lock          held by rank 0 as long as the run goes on; says who that is
checkpoints/   round-00000040/ ...
"""
