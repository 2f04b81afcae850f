"""Used by every folder: errors, files, text, HDF5, command lines."""
