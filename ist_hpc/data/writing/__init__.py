"""Writes data sets: the writer, and the place of a data set."""
