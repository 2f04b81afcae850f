"""The process and the machine: start and end, signals, devices, meters, the run folder."""
