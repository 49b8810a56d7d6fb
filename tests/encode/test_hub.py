"""Models on Hugging Face, against a small server that speaks the part of the hub's protocol that is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import reference_model, write_checkpoint
from olmoearth_pretrain_minimal.model_loader import ModelID

from pipeline.encode import checkpoint, hub
from pipeline.errors import ConfigError, TransientError

ID = "someone/OlmoEarth-toy"
COMMIT, LATER = "a" * 40, "b" * 40
TOKEN = "hf_averysecrettoken"
SIGNATURE = "Signature=averysecretsignature"


@dataclass
class Hub:
    """What the server holds and has seen.

    Large files are redirected to a signed address, as the hub does; small ones are served in place.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main", "v2")
    refuse: tuple[int, dict[str, str]] | None = None
    open_to: str = ""
    drops: int = 0
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def downloads(self) -> list[dict[str, str]]:
        """Headers of every download of the weights."""
        return [headers for method, path, headers in self.requests if method == "GET" and path.startswith("/cdn/")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        state: Hub = self.server.state
        state.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        path, _, query = self.path.partition("?")
        if path.startswith("/cdn/"):
            return self.content(state, path.removeprefix("/cdn/"), signed=query == SIGNATURE)
        if state.refuse and not (state.open_to and self.headers.get("Authorization") == f"Bearer {state.open_to}"):
            return self.answer(state.refuse[0], state.refuse[1])
        if path.startswith(f"/api/models/{ID}/revision/"):
            return self.info(state, path.rpartition("/")[2])
        if path.startswith(f"/{ID}/resolve/"):
            revision, name = path.removeprefix(f"/{ID}/resolve/").split("/", 1)
            return self.resolve(state, revision, name)
        return self.answer(404, {"X-Error-Code": "RepoNotFound"})

    def info(self, state, revision):
        if revision not in (*state.revisions, state.commit):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        body = {"id": ID, "sha": state.commit, "siblings": [{"rfilename": name} for name in state.files]}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def resolve(self, state, revision, name):
        if revision not in (*state.revisions, state.commit) or name not in state.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        body = state.files[name]
        known = {"X-Repo-Commit": state.commit, "ETag": f'"{abs(hash(body)):x}"'}
        if name.endswith((".pth", ".onnx")):
            linked = {"X-Linked-Etag": known["ETag"], "X-Linked-Size": str(len(body))}
            return self.answer(
                302, known | linked | {"Location": f"http://localhost:{self.server.server_port}/cdn/{name}?{SIGNATURE}"}
            )
        return self.answer(200, known, body)

    def content(self, state, name, *, signed):
        if not signed:
            return self.answer(403, {})
        body = state.files[name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        status, headers = (206, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}) if start else (200, {})
        stop = len(body)
        if state.drops:
            state.drops -= 1
            stop = start + (len(body) - start) // 2
            self.close_connection = True
        return self.answer(status, headers | {"Content-Length": str(len(body) - start)}, body[start:stop])

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), reference_model("toy", version="v1.3"))
    held = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return held | {"README.md": b"---\nlicense: other\nlicense_name: olmoearth\n---\n", "model.onnx": b"not wanted"}


@pytest.fixture
def server(files, monkeypatch, tmp_path):
    """A hub with one repository; the cache of huggingface_hub is a fresh folder."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.state = Hub(dict(files))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield http.state
    huggingface_hub.close_session()
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_fetch_brings_what_is_read_and_nothing_else(server, files):
    folder = hub.fetch(ID)
    assert folder.name == COMMIT
    assert {path.name for path in folder.iterdir()} == {"config.json", "weights.pth", "README.md"}
    assert (folder / "weights.pth").read_bytes() == files["weights.pth"]


def test_a_cache_folder_can_be_given(server, tmp_path):
    assert tmp_path / "elsewhere" in hub.fetch(ID, cache=tmp_path / "elsewhere").parents


def test_a_hub_model_is_named_by_its_commit_and_loads_again_without_asking(server):
    card = checkpoint.describe(f"hf:{ID}@v2")
    assert card.name == f"{ID}@{COMMIT}"
    assert (card.version, card.licence) == ("v1.3", "olmoearth")
    before = len(server.requests)
    assert checkpoint.describe(card.name) == card
    assert len(server.requests) == before


def test_files_that_are_there_are_not_downloaded_again(server):
    hub.fetch(ID)
    hub.fetch(ID)
    assert len(server.downloads()) == 1


def test_a_branch_that_moved_is_noticed(server):
    first = hub.fetch(ID)
    server.commit = LATER
    server.files["README.md"] = b"another text"
    assert (first.name, hub.fetch(ID).name) == (COMMIT, LATER)


def test_an_interrupted_download_goes_on_where_it_stopped(server, files, monkeypatch, caplog, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept is whole chunks
    server.drops = 1
    folder = hub.fetch(ID)
    assert (folder / "weights.pth").read_bytes() == files["weights.pth"]
    ranges = [headers.get("range") for headers in server.downloads()]
    assert len(ranges) == 2
    assert ranges[1] == f"bytes={len(files['weights.pth']) // 2 // 1000 * 1000}-"
    assert SIGNATURE not in caplog.text + "".join(capfd.readouterr())


def test_offline_uses_the_cache_alone(server):
    folder = hub.fetch(ID)
    before = len(server.requests)
    assert hub.fetch(ID, offline=True) == folder
    assert len(server.requests) == before


def test_offline_is_asked_for_by_the_environment(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=f"not in the cache.*`earthpress model fetch {ID}`"):
        checkpoint.load(ID)
    assert server.requests == []


def test_half_a_model_in_the_cache_does_not_count_offline(server):
    folder = hub.fetch(ID)
    (folder / "weights.pth").unlink()
    with pytest.raises(ConfigError, match="not in the cache"):
        hub.fetch(ID, offline=True)


def test_an_unknown_revision_is_named(server):
    with pytest.raises(ConfigError, match=f"{ID} has no revision 'v3'"):
        hub.fetch(ID, "v3")


def test_an_unknown_repository_may_have_been_meant_as_a_folder(server):
    with pytest.raises(ConfigError, match="neither a folder here nor a repository"):
        checkpoint.load("models/nano")


@pytest.mark.parametrize(
    ("refusal", "match"),
    [
        ((401, {"X-Error-Code": "RepoNotFound"}), "open to you"),
        ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}), r"HTTP 401.*check HF_TOKEN"),
        ((403, {"X-Error-Code": "GatedRepo"}), "gated: accept its terms"),
        ((403, {}), r"HTTP 403.*check HF_TOKEN"),
    ],
)
def test_a_refusal_says_what_to_do_and_quotes_no_secret(server, monkeypatch, refusal, match):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.refuse = refusal
    with pytest.raises(ConfigError, match=match) as caught:
        hub.fetch(ID)
    assert server.requests[0][2]["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in str(caught.value)
    assert "http" not in str(caught.value)


def test_a_token_opens_a_gated_model(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.refuse, server.open_to = (403, {"X-Error-Code": "GatedRepo"}), TOKEN
    assert hub.fetch(ID).name == COMMIT


def test_an_overloaded_hub_is_worth_another_try(server):
    server.refuse = (503, {})
    with pytest.raises(TransientError, match="HTTP 503"):
        hub.fetch(ID)


def test_a_hub_that_is_not_there_is_worth_another_try(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match=r"cannot be fetched.*HF_HUB_OFFLINE=1") as caught:
        hub.fetch(ID)
    assert "127.0.0.1" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_network(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be stored in the cache"):
        hub.fetch(ID, cache=tmp_path / "file")


@pytest.mark.parametrize("gone", ["config.json", "weights.pth"])
def test_a_repository_without_a_model_is_refused_with_what_it_has(server, gone):
    del server.files[gone]
    with pytest.raises(ConfigError, match=r"not an OlmoEarth model.*README\.md"):
        hub.fetch(ID)


def test_the_environment_of_a_new_process_is_honoured(server, tmp_path):
    code = f"from pipeline.encode import hub; print(hub.fetch({ID!r}))"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert tmp_path / "home" / "hub" in Path(done.stdout.strip()).parents


def test_short_names_are_those_of_the_released_models():
    assert set(hub.RELEASES.values()) == {model.repo_id() for model in ModelID}
    assert hub.parse("v1.1-tiny") == ("allenai/OlmoEarth-v1_1-Tiny", None)


@pytest.mark.parametrize(
    ("model", "want"),
    [
        ("a/b", ("a/b", None)),
        ("hf:a/b@refs/pr/3", ("a/b", "refs/pr/3")),
        ("v1.3-base@main", ("allenai/OlmoEarth-v1_3-Base", "main")),
        ("v1.3-nano", None),
        ("a/b/c", None),
        ("./a", None),
        ("/a/b", None),
        ("a", None),
    ],
)
def test_an_id_is_told_from_a_path(model, want):
    assert hub.parse(model) == want


@pytest.mark.parametrize("model", ["hf:", "hf:name", "hf:a/b/c", "hf:v1.3-nano"])
def test_what_is_meant_as_an_id_and_is_none_is_refused(model):
    with pytest.raises(ConfigError, match=r"owner/name.*v1\.2-nano"):
        hub.parse(model)
