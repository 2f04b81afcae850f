"""Independent subnet training on quadratics, where theory predicts the fixed point and its bias."""
