"""Stores, GeoTIFFs, pictures, receipts."""
