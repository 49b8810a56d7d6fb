"""HTTP to a STAC API: patient with a busy server, bounded in time and size, and faithful to one address.

Requests are made one after the other. A redirect or link to another address is refused, because it would send the
search, and this machine's view of its network, wherever somebody else likes. No message holds a query string or a
password, and nothing is logged.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from pipeline.errors import InvalidInputError, TransientError
from pipeline.plan.hrefs import redact

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIES = 8
RETRIED = frozenset([429, 502, 503, 504])
"""Statuses that are asked again; pystac-client itself retries none (measured)."""
MAX_RETRY_AFTER_S = 120.0
CONNECT_S, READ_S = 15.0, 60.0
"""Time to connect, and of silence; the Planetary Computer takes up to half a minute for a page."""
ANSWER_S = 300.0
"""Longest time from an answer's header to its end."""
ATTEMPTS = 3
"""Times that an answer is asked for whose body breaks off or makes no sense."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""A page of 250 items has about 10 MB."""
MAX_REDIRECTS = 5
_DEFAULT_PORTS = {"http": 80, "https": 443}


class _BrokenAnswerError(Exception):
    """The body did not arrive whole; the same request may work."""


class _PatientRetry(Retry):
    """Retry that obeys Retry-After only up to ``MAX_RETRY_AFTER_S``, and not at all when it makes no sense."""

    def get_retry_after(self, response: Any) -> float | None:
        """Seconds to wait, or None when the server does not say."""
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            return None
        return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


class ApiIO(StacApiIO):  # type: ignore[misc]
    """Transport for pystac-client: ``request`` and, through it, ``read_text`` and ``read_json``.

    Args:
        url: Landing page of the API; every request stays at its address.
        backoff_s: Factor of the exponential back-off between retries.
    """

    def __init__(self, url: str, *, backoff_s: float) -> None:
        super().__init__()
        self._url, self._backoff_s = url, backoff_s
        # urllib3 retries no POST, which searches are, unless every method is allowed (measured).
        retries = _PatientRetry(
            total=RETRIES,
            connect=3,
            read=3,
            redirect=False,
            backoff_factor=backoff_s,
            status_forcelist=RETRIED,
            allowed_methods=None,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retries))

    def own(self, href: str, *, base: str = "") -> str:
        """A URL of the API; ``http`` becomes ``https`` where a proxy in front of the API forgot it.

        Args:
            href: URL, or relative to ``base``.
            base: URL.

        Raises:
            InvalidInputError: Another address.
        """
        url = _joined(base, href)
        here, there = _origin(self._url), _origin(url)
        if here is not None and there == ("http", here[1], 80) and here[::2] == ("https", 443):
            url, there = urlunsplit(urlsplit(url)._replace(scheme="https", netloc=urlsplit(self._url).netloc)), here
        elif here is not None and here[::2] == ("http", 80) and there == ("https", here[1], 443):
            there = here
        if there is None or there != here:
            raise self._elsewhere("no URL" if there is None else f"{there[0]}://{there[1]}:{there[2]}")
        return url

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """The body of an answer with a status of 200 to 299.

        Raises:
            InvalidInputError: The API refuses the request, or sends it to another address.
            TransientError: It does not answer, or not whole.
        """
        method = (method or "GET").upper()
        body = {"json": parameters} if method != "GET" else {"params": parameters or {}}
        return self._asked_again(lambda: self._follow(href, method=method, headers=headers, **body))

    def pause(self, attempt: int) -> None:
        """Wait before asking again, longer every time."""
        time.sleep(self._backoff_s * 2**attempt)

    def _asked_again(self, ask: Callable[[], str]) -> str:
        for attempt in range(ATTEMPTS):
            try:
                return ask()
            except _BrokenAnswerError as err:
                reason = str(err)
            if attempt + 1 < ATTEMPTS:
                self.pause(attempt)
        raise self._transient(f"{ATTEMPTS} answers broke off: {reason}")

    def _follow(self, url: str, *, method: str, **body: Any) -> str:
        url = self.own(url)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url, method=method, **body)
            try:
                if not response.is_redirect:
                    return self._text(response)
                # 303 asks for GET; what else redirects means the same request elsewhere, a search changes nothing.
                method, body = ("GET", {}) if response.status_code == 303 else (method, body)
                url = self.own(response.headers["Location"], base=url)
            finally:
                response.close()
        raise self._transient(f"it redirects more than {MAX_REDIRECTS} times")

    def _send(self, url: str, *, method: str, **body: Any) -> requests.Response:
        try:
            return self.session.request(  # type: ignore[no-any-return]
                method, url, timeout=(CONNECT_S, READ_S), allow_redirects=False, stream=True, **body
            )
        except requests.RequestException as err:
            raise self._transient(_one_line(err)) from None
        except ValueError:  # requests looks at a Location even where it shall not follow it
            raise self._elsewhere("no URL") from None

    def _text(self, response: requests.Response) -> str:
        status = response.status_code
        data = self._body(response)
        if 200 <= status < 300:
            return data.decode("utf-8", errors="replace")
        said = _one_line(data[:2000].decode("utf-8", errors="replace"))
        if 400 <= status < 500 and status not in {408, 425, 429}:
            raise InvalidInputError(
                f"STAC API {redact(self._url)} refused the request with status {status}: {said or 'no reason given'}"
            )
        raise self._transient(f"status {status}: {said or 'no reason given'}")

    def _body(self, response: requests.Response) -> bytes:
        until, pieces, size = time.monotonic() + ANSWER_S, [], 0
        try:
            for piece in response.iter_content(1 << 16):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise InvalidInputError(
                        f"STAC API {redact(self._url)} answers with more than {MAX_ANSWER_BYTES >> 20} MiB: refused"
                    )
                if time.monotonic() > until:
                    raise _BrokenAnswerError(f"it takes more than {ANSWER_S:g} s")
        except requests.RequestException as err:
            raise _BrokenAnswerError(_one_line(err)) from None
        return b"".join(pieces)

    def _elsewhere(self, place: str) -> InvalidInputError:
        return InvalidInputError(
            f"STAC API {redact(self._url)} sends the search on to another address ({place}): refused; if that is where "
            "it lives now, use that address as the catalogue"
        )

    def _transient(self, reason: str) -> TransientError:
        return TransientError(
            f"STAC API {redact(self._url)} does not answer, retries included ({reason}); is the address right?"
        )


def _origin(url: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of an HTTP URL; None for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port if parts.port is not None else _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.scheme in _DEFAULT_PORTS and parts.hostname and port else None


def _joined(base: str, href: str) -> str:
    """``urljoin`` that answers with "" where one of them is malformed."""
    try:
        return urljoin(base, href)
    except ValueError:
        return ""


def _one_line(text: object) -> str:
    return redact(" ".join(str(text).split()))[:300]
