"""The networks, their layers and losses, and the optimisers."""
