"""What is measured of activations: axes, control axes, reference lines and token traces."""
