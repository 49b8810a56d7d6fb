"""Models on Hugging Face: fetched once into the local cache, by commit.

Everything that speaks to the hub goes through ``huggingface_hub``, which keeps its cache under ``HF_HOME``, resumes an
interrupted download and honours ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``. Only the files that are read are
fetched. Its own errors and log lines quote addresses, which may be signed; those of this module never do.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.encode.layout import RELEASED
from pipeline.encode.weights import FILES
from pipeline.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASES = {
    f"{version}-{size}": f"allenai/OlmoEarth-{version.replace('.', '_')}-{size.title()}"
    for version, sizes in RELEASED.items()
    for size in sizes
}
"""Repository of every release by its short name (``ModelID`` of package olmoearth-pretrain-minimal 0.1.5)."""
NAME = re.compile(r"(?:hf:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|v[\d.]+-[a-z]+)(?:@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
CARDS = ("README.md", "LICENSE")
"""Fetched as well where a repository has them: they name the licence of the weights."""
TIMEOUT_S = 30.0
"""For the answer to one question about a repository."""


def parse(model: str) -> tuple[str, str | None] | None:
    """(repository id, revision) of ``owner/name``, ``owner/name@revision`` or a short name; None: not such a name.

    Raises:
        ConfigError: It starts with ``hf:`` and is not an id.

    >>> parse("hf:allenai/OlmoEarth-v1_2-Nano@main"), parse("v1-base"), parse("../model")
    (('allenai/OlmoEarth-v1_2-Nano', 'main'), ('allenai/OlmoEarth-v1-Base', None), None)
    """
    match = NAME.fullmatch(model)
    name = match and RELEASES.get(match["id"], match["id"])
    if match and name and "/" in name:
        return name, match["revision"]
    if model.startswith("hf:"):
        raise ConfigError(
            f"{model!r} is not a Hugging Face id: use owner/name, owner/name@revision or {_short_names()}"
        )
    return None


def fetch(
    model_id: str, revision: str | None = None, *, offline: bool | None = None, cache: Path | None = None
) -> Path:
    """The folder with a model's files, downloaded if the cache lacks them.

    A commit that is in the cache is used without asking anybody. Otherwise the revision is looked up first, so that a
    branch that has moved is noticed; if that fails, nothing older is used in silence.

    Args:
        model_id: ``owner/name``.
        revision: Branch, tag or commit, default ``main``.
        offline: Use the cache alone; default: whether ``HF_HUB_OFFLINE`` is set.
        cache: Folder of the cache, default that of ``huggingface_hub``.

    Returns:
        The snapshot folder, named by the commit.

    Raises:
        ConfigError: No such repository or revision, no access, not an OlmoEarth model, or offline and not in the cache.
        TransientError: The hub cannot be reached or is overloaded.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - only for models on the hub

    revision = revision or "main"
    _check_id(model_id)
    if offline is None:
        offline = bool(
            constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}
        )
    if offline or COMMIT.fullmatch(revision):
        folder = _cached(model_id, revision, cache)
        if folder is not None:
            return folder
    if offline:
        raise ConfigError(
            f"model {model_id} at {revision} is not in the cache and HF_HUB_OFFLINE is set: run "
            f"`earthpress model fetch {model_id}` where there is a network"
        )
    with _quiet():
        return _download(model_id, revision, cache)


def _check_id(model_id: str) -> None:
    from huggingface_hub import errors  # noqa: PLC0415
    from huggingface_hub.utils._validators import validate_repo_id  # noqa: PLC0415

    try:
        validate_repo_id(model_id)
    except errors.HFValidationError as err:
        raise ConfigError(f"{model_id!r} is not a Hugging Face id: use owner/name, or {_short_names()}") from err


def _cached(model_id: str, revision: str, cache: Path | None) -> Path | None:
    """The snapshot folder, when it holds all that is read."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    def path(name: str) -> Path | None:
        found = try_to_load_from_cache(model_id, name, cache_dir=cache, revision=revision)
        return Path(found) if isinstance(found, str) else None

    weights, config = next(filter(None, map(path, FILES)), None), path("config.json")
    if weights is None or (config is None and weights.suffix != ".ckpt"):
        return None
    return weights.parent


def _download(model_id: str, revision: str, cache: Path | None) -> Path:
    from huggingface_hub import HfApi, errors, hf_hub_download  # noqa: PLC0415

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint).model_info(model_id, revision=revision, timeout=TIMEOUT_S)
        names = _wanted({file.rfilename for file in info.siblings or ()}, model_id)
        folder: Path | None = None
        for name in names:
            # the first by the revision's own name, so that the cache knows it offline; the others by its commit
            commit = folder.name if folder else revision
            folder = Path(hf_hub_download(model_id, name, revision=commit, cache_dir=cache, endpoint=endpoint)).parent
    except errors.HFValidationError as err:
        raise ConfigError(f"{model_id!r} is not a Hugging Face id: {err}") from None
    except _failures() as err:
        raise _explained(err, model_id, revision) from None  # the original quotes addresses
    assert folder is not None  # noqa: S101 - names is never empty
    return folder


def _failures() -> tuple[type[Exception], ...]:
    """What a failed request raises.

    The HTTP library below huggingface_hub changed, so its base class is looked up; hf_xet, which brings large files,
    raises RuntimeError.
    """
    from huggingface_hub import errors  # noqa: PLC0415

    bases = (base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return (*(base for base in bases if issubclass(base, Exception)), OSError, RuntimeError)


def _wanted(there: set[str], model_id: str) -> list[str]:
    """Files to fetch of those a repository has.

    Raises:
        ConfigError: It holds no model that can be read.
    """
    weights = next((name for name in FILES if name in there), None)
    if weights is None or ("config.json" not in there and not weights.endswith(".ckpt")):
        raise ConfigError(
            f"{model_id} is not an OlmoEarth model: it needs config.json and one of {', '.join(FILES)}, has "
            f"{', '.join(sorted(there)[:8]) or 'no files'}"
        )
    return [name for name in ("config.json", *CARDS, weights) if name in there]


def _explained(err: Exception, model_id: str, revision: str) -> ConfigError | TransientError:
    """One of our errors for one of the hub's, without its text."""
    from huggingface_hub import errors  # noqa: PLC0415

    status = getattr(getattr(err, "response", None), "status_code", None)
    if isinstance(err, errors.GatedRepoError):
        return ConfigError(f"model {model_id} is gated: accept its terms on its page, then set HF_TOKEN")
    if isinstance(err, errors.RevisionNotFoundError):
        return ConfigError(f"model {model_id} has no revision {revision!r}: give a branch, a tag or a commit of it")
    if isinstance(err, errors.RepositoryNotFoundError):
        return ConfigError(
            f"model {model_id} is neither a folder here nor a repository on Hugging Face that is open to you: check "
            "the name, or set HF_TOKEN for a private one"
        )
    if status in (401, 403):
        return ConfigError(f"Hugging Face refuses model {model_id} (HTTP {status}): check HF_TOKEN")
    number = getattr(err, "errno", None)
    if number is not None and not isinstance(err, ConnectionError | TimeoutError | errors.HfHubHTTPError):
        return ConfigError(f"model {model_id} cannot be stored in the cache: {os.strerror(number)}")
    what = f"HTTP {status}" if status else type(err).__name__
    return TransientError(
        f"model {model_id} cannot be fetched from Hugging Face ({what}): try again, or set HF_HUB_OFFLINE=1 to use a "
        "copy in the cache"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hub's log lines out: a retried download quotes its address."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _short_names() -> str:
    return ", ".join(RELEASES)
