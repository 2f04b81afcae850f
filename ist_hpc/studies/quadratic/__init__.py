"""Independent subnets on quadratics, predicted and measured."""
