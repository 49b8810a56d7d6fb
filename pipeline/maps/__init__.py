"""Embeddings to classes."""
