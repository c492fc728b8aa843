"""What goes to the hub: card and parquet files in one commit, earlier files removed, the token from the environment."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from ip2p.hub import push_dataset

PAGE = "https://huggingface.co/datasets/me/pairs"
EARLIER = ["README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "other.txt"]


@dataclass
class Hub:
    """A hub that holds an earlier dataset of two training files and notes what is asked of it."""

    refuses: bool = False
    tokens: set[str | None] = field(default_factory=set)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> Any:
        if path.startswith("/api/repos/create"):
            self.created.append(json.loads(body))
            return {"url": PAGE, "id": "me/pairs"}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in EARLIER]
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}
        if "/commit/" in path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            return {
                "commitUrl": f"{PAGE}/commit/1",
                "commitOid": "1" * 40,
                "hookOutput": "",
            }
        return {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if "/create" in self.path or "/commit/" in self.path:  # what writes
                found.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.dumps({"error": "no"} if found.refuses else found.answer(self.path, body)).encode()
            self.send_response(403 if found.refuses else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("README.md", "manifest.json", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_card_and_files_go_up_in_one_commit_and_earlier_ones_go(folder: Path, hub: Hub) -> None:
    assert "me/pairs" in push_dataset(folder, "me/pairs", private=True)
    assert hub.tokens == {"Bearer hf_secret"}
    (created,) = hub.created
    assert created["type"] == "dataset" and created["visibility"] == "private"
    (lines,) = hub.commits
    added = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert {name: base64.b64decode(content).decode() for name, content in added.items()} == {
        name: name for name in ("README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    }
    removed = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
    assert removed == {"data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"}


def test_without_a_token_or_a_dataset_nothing_is_asked(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="holds no parquet file"):
        push_dataset(folder / "nothing", "me/pairs")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="HF_TOKEN"):
        push_dataset(folder, "me/pairs")
    assert not hub.tokens


def test_a_refusal_is_one_line_with_the_way_out(folder: Path, hub: Hub) -> None:
    hub.refuses = True
    with pytest.raises(ValueError, match=r"the hub refused me/pairs: .*403.*Check the name"):
        push_dataset(folder, "me/pairs")
