"""A model hub on loopback: it creates repositories, takes commits, and serves files of data sets."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub received, and what it holds."""

    url: str = ""
    token: str = "hf_" + "x" * 30
    created: list[dict[str, Any]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any, dict[str, str]]:
        """Return status, JSON or bytes, and headers."""
        self.asked.append(f"{method} {path}")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:1] == ["datasets"] or parts[:2] == ["api", "datasets"]:
            return self._dataset(parts)
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials"}, {}
        if parts == ["api", "repos", "create"]:
            self.created.append(json.loads(body))
            made = self.created[-1]
            return 200, {"url": f"{self.url}/{made['organization']}/{made['name']}"}, {}
        if parts[-2:-1] == ["preupload"]:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return 200, {"files": files}, {}
        if parts[-2:-1] == ["commit"]:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.uploaded[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            where = f"{self.url}/org/name/commit/{COMMIT}"
            return 200, {"success": True, "commitUrl": where, "commitOid": COMMIT, "hookOutput": ""}, {}
        if parts[:2] == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, {}
        return 200, {"id": "org/name", "sha": COMMIT, "siblings": [], "private": True, "tags": []}, {}

    def _dataset(self, parts: list[str]) -> tuple[int, Any, dict[str, str]]:
        if parts[0] == "api":
            name = "/".join(parts[2:4])
            if (files := self.datasets.get(name)) is None:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if "tree" in parts:
                entries = [
                    {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
                return 200, entries, {}
            siblings = [{"rfilename": path} for path in files]
            return 200, {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}, {}
        name, path = "/".join(parts[1:3]), "/".join(parts[5:])
        if (data := self.datasets.get(name, {}).get(path)) is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, data, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """Serve a hub until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content, headers = hub.answer(
                self.command, urlsplit(self.path).path, data, self.headers.get("Authorization", "")
            )
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
