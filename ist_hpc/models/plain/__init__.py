"""The full networks in plain PyTorch, which `show --export` prints; they import nothing else."""
