"""Multi-layer perceptrons, with what sparse rows and many labels need."""
