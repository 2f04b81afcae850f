"""Writing a data set: the writer, and the place that it takes."""
