"""One tile; one machine."""
