"""The full network on the rows of a data set: its outputs, metrics and predictions."""
