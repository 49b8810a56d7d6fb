"""Landscapes and scenes with known truth, for the demo and the tests."""
