"""Networks over the ranks: algorithms, the start, the round loop, evaluation."""
