"""What every folder may use: errors, files, text, HDF5, command lines."""
