"""Files and folders: their names, locks, and how they come to be whole; HDF5."""
