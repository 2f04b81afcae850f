"""The studies of the paper: many runs side by side, their tables and pictures."""
