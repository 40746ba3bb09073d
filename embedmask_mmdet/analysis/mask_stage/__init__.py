"""Time the mask stage of inference, from the outputs of the network to masks, for several models."""
