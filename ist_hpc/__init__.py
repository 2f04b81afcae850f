"""Independent subnet training on MPI clusters (Yuan et al., arXiv 1910.02120)."""

__version__ = "0.1.0"
