"""The simulated sample behind real servers: a STAC API and a file server that asks for signatures, on loopback."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from planetary_computer.settings import Settings

from tests.servers.ranges import Sas, serving
from tests.servers.stac import StacServer

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBER = count()
REMOTE = ("inputs.allow_private_hosts=true",)


@contextmanager
def archive(sample, monkeypatch, *, http_faults=(), sas: Sas | None = None, delay_s=0.0) -> Iterator[tuple]:
    """(STAC API, file server, Sas) over the sample's files; the environment leads signing and reading there."""
    # Where the signing library expects an archive; the file server is the proxy through which it is reached. Another
    # account every time, because tokens and files are remembered by their address in this process.
    blob, container = f"http://simulated{next(_NUMBER)}.blob.core.windows.net", Path(sample.folder)
    items = json.loads(Path(sample.catalog).read_text(encoding="utf-8"))["features"]
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = f"{blob}/{container.name}/{asset['href'].removeprefix('./')}"
    sas = sas or Sas()
    with (
        serving(container.parent, http_faults=http_faults, sas=sas, delay_s=delay_s) as files,
        StacServer(items) as api,
    ):
        Settings.get.cache_clear()  # the library remembers the address of the test before
        monkeypatch.setenv("PC_SDK_SAS_URL", files.sas_url)
        monkeypatch.setenv("GDAL_HTTP_PROXY", f"http://127.0.0.1:{files.server_port}")
        monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")
        yield api, files, sas
        Settings.get.cache_clear()
