"""The configuration: its keys, their rules, YAML and `--set`."""
