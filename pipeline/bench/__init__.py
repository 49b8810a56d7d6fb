"""Measurements that a user can repeat: the encoder's speed, what feeding it costs, and what both mean for a year.

A composing room, like ``run/``: ``rows`` says what is measured, ``encoder`` and ``rival`` measure it, ``device`` tells
what the machine is and can do, ``table`` keeps the results, ``project`` turns a row into hours and money, ``loader``
separates reading from computing, ``show`` lays results out. Functions return values; only the command line prints.
"""
