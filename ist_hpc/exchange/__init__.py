"""The method: who holds which weight, and how weights move from holder to holder."""
