"""The range server of tests.servers.ranges, under its old name."""

from tests.servers.ranges import RangeServer, serving

__all__ = ["RangeServer", "serving"]
