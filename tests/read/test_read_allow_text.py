"""Refusals of hosts name the setting that allows them."""

from __future__ import annotations

import pytest

from pipeline.errors import InvalidInputError
from pipeline.read.allow import Allowed


def test_a_refused_private_address_names_the_setting():
    with pytest.raises(InvalidInputError, match=r"inputs\.allow_private_hosts=true"):
        Allowed().check("http://10.0.0.5/a.tif")


def test_a_refused_host_names_the_setting_and_the_allowed_ones():
    with pytest.raises(InvalidInputError, match=r"\(inputs\.allowed_hosts\): example\.org, \.example\.com$"):
        Allowed(hosts=("example.org", ".example.com")).check("https://other.org/a.tif")
