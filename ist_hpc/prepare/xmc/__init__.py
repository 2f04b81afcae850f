"""Text of the Extreme Classification Repository."""
