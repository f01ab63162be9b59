"""Ground floor: named arrays, the wire format, Keras checkpoints, and optimizers over them."""
