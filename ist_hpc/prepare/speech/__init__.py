"""Google Speech Commands."""
