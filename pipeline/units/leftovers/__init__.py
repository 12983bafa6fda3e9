"""What a channel still gives the layer that reads it once its zero-invariant part is zero."""
