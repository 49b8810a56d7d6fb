"""earthpress: from an area and dates to int8 embeddings and maps."""
