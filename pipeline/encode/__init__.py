"""Stack to vectors: the encoder, its session, stitching and quantising."""
