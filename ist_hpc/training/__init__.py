"""Networks over the ranks: algorithms, evaluation, the round loop."""
