"""Shared access signatures as Azure issues and checks them, with a clock that a test can turn."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote, urlsplit

DENIED = (
    b'<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code>'
    b"<Message>Signature not valid in the specified time frame</Message></Error>"
)


class Sas:
    """Tokens for containers: ``token`` issues, ``accepts`` checks, ``advance`` turns the server's clock.

    Args:
        life_s: Validity of a token.
        told_life_s: Validity that the client is told; default: the truth. A larger one makes tokens expire early.
    """

    def __init__(self, *, life_s: float = 3600.0, told_life_s: float | None = None) -> None:
        self.life_s, self.told_life_s = life_s, told_life_s
        self.issued: list[tuple[str, str]] = []
        """(account/container, signature), oldest first."""
        self._valid: dict[str, float] = {}  # signature -> expiry, seconds since the epoch
        self._ahead_s = 0.0
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """The server's clock, seconds since the epoch."""
        return time.time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Turn the server's clock; the client's goes on as it was."""
        self._ahead_s += seconds

    def revoke(self) -> None:
        """Refuse every token issued so far."""
        with self._lock:
            self._valid.clear()

    def token(self, place: str) -> dict[str, str]:
        """What a token endpoint answers for ``account/container``: the expiry and the query string to append."""
        with self._lock:
            number = len(self.issued) + 1
            signature = f"sig+{number}/{place.replace('/', '.')}=="  # as base64 looks: needs quoting
            now = self.now_s()
            self._valid[signature] = now + self.life_s
            self.issued.append((place, signature))
        told = _iso(now + (self.life_s if self.told_life_s is None else self.told_life_s))
        text = f"st={_iso(now - 60)}&se={told}&sp=rl&sv=2024-05-04&sr=c&sig={quote(signature, safe='')}"
        return {"msft:expiry": told, "token": text.replace(":", "%3A")}

    def accepts(self, target: str) -> bool:
        """Whether the request's ``se`` and ``sig`` are known and not expired on the server's clock."""
        query = {k: v[0] for k, v in parse_qs(urlsplit(target).query).items()}
        with self._lock:
            until = self._valid.get(query.get("sig", ""))
        if until is None or "se" not in query:
            return False
        try:
            told = datetime.fromisoformat(query["se"]).timestamp()
        except ValueError:
            return False
        return self.now_s() < min(until, told)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
