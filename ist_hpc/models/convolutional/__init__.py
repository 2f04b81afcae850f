"""Networks of convolutions on images: VGG11 and pre-activation residual networks."""
