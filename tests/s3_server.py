"""An S3 server on this machine, with one bucket, and the files of a run that lie in a store and in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import httpx
import pytest

BUCKET = "pairs"


@contextmanager
def serving_s3() -> Iterator[str]:
    """Serves S3 to this process and its children; yields the bucket's URL."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        httpx.post(f"{address}/moto-api/reset").raise_for_status()  # buckets outlive the server, in its process
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", address)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
            yield f"s3://{BUCKET}"
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # clients of the next server have another address


def files_of(folder: Path) -> dict[str, bytes]:
    """Reads a run folder's files by path, without hidden ones and the log."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {name: content for name, content in names.items() if "/." not in f"/{name}" and name != "run.log"}


def stored(url: str) -> dict[str, bytes]:
    """Reads a store's files as `files_of` does a folder's."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    start = len(root) + 1
    return {path[start:]: fs.cat_file(path) for path in fs.find(root) if _counts(path[start:])}


def _counts(path: str) -> bool:
    return "/." not in f"/{path}" and path != "run.log"  # which goes on to be written
