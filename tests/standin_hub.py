"""Stand-ins for the Hugging Face Hub on 127.0.0.1, one that works and broken ones."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from safetensors.numpy import save

# Seconds: long enough for a local server on a loaded machine, short enough for a test.
PATIENCE = 1.0
SHA = "0123456789abcdef0123456789abcdef01234567"


def tiny_model() -> dict[str, bytes]:
    """The files of a Llama with one layer of width 8 and random weights."""
    random = np.random.default_rng(0)
    sizes = {
        "model.embed_tokens": (32, 8),
        "model.norm": (8,),
        "lm_head": (32, 8),
        **{f"model.layers.0.self_attn.{name}_proj": (8, 8) for name in "qkvo"},
        "model.layers.0.mlp.gate_proj": (16, 8),
        "model.layers.0.mlp.up_proj": (16, 8),
        "model.layers.0.mlp.down_proj": (8, 16),
        "model.layers.0.input_layernorm": (8,),
        "model.layers.0.post_attention_layernorm": (8,),
    }
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32}
    config |= {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    weights = {
        f"{name}.weight": random.standard_normal(size, np.float32) for name, size in sizes.items()
    }
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": save(weights, {"format": "pt"}),
    }


def write_model(folder: Path) -> Path:
    """The tiny model as a local directory."""
    folder.mkdir(parents=True)
    for name, content in tiny_model().items():
        (folder / name).write_bytes(content)
    return folder


class Hub(ThreadingHTTPServer):
    """Serves `files` as every repository there is; `mode` says what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        """Take a free port; nothing is answered before `serving`."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = tiny_model()
        self.mode = "serve"
        self.requests: list[str] = []
        self.sha = SHA
        self.created: list[dict[str, object]] = []
        self.messages: list[str] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, body: bytes) -> dict[str, str]:
        """Take the files of a commit as the Hub does, one JSON object a line."""
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            elif line["key"] == "deletedFile":
                del self.files[line["value"]["path"]]
            else:
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.sha = hashlib.sha1(body).hexdigest()
        return {"commitOid": self.sha, "commitUrl": f"{self.url}/{repository}/commit/{self.sha}"}

    def downloaded(self) -> set[str]:
        """Names of the files whose contents were asked for."""
        return {line.rpartition("/")[2] for line in self.requests if line.startswith("GET /tiny")}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append(f"{self.command} {path}")
        refused = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound")}
        refused |= {"no revision": (404, "RevisionNotFound"), "broken": (500, "")}
        if self.server.mode == "portal":
            self._send(200, b"<html>please log in</html>", with_body)
        elif self.server.mode in refused:
            status, code = refused[self.server.mode]
            self._send(status, b"{}", with_body, {"X-Error-Code": code} if code else {})
        elif not self.server.files:
            self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            name = max(
                (n for n in self.server.files if path.endswith(f"/{n}")), key=len, default=""
            )
            self._file(name, with_body)
        elif "/tree/" in path:
            self._send(200, json.dumps([_entry(*item) for item in self.server.files.items()]))
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {
                "id": path.removeprefix("/api/models/"),
                "sha": self.server.sha,
                "private": False,
                "siblings": siblings,
            }
            self._send(200, json.dumps(info))

    def do_POST(self) -> None:
        """What a push asks: a repository, where contents go, a sound card, a commit."""
        path = unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"POST {path}")
        if self.server.mode in ("read only", "broken"):
            self._send(403 if self.server.mode == "read only" else 500, b"{}")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            self.server.files[".gitattributes"] = b""
            url = f"{self.server.url}/{asked.get('organization') or 'me'}/{asked['name']}"
            self._send(200, json.dumps({"url": url}))
        elif "/preupload/" in path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": at, "uploadMode": "regular", "shouldIgnore": False} for at in paths]
            self._send(200, json.dumps({"files": modes}))
        elif "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._send(200, json.dumps(self.server.commit(repository, body)))
        else:
            self._send(200, b"{}")

    def _file(self, name: str, with_body: bool) -> None:
        if name not in self.server.files:
            self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            return
        content = self.server.files[name]
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self.server.sha}
        if with_body and self.server.mode == "unavailable":
            self._send(503, b"", with_body)
        elif with_body and self.server.mode == "cut":
            self._send(200, content, False, headers)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif with_body and self.server.mode == "no contents":
            self.server.closing.wait(60)
            self.close_connection = True
        else:
            self._send(200, content, with_body, headers)

    def _send(
        self,
        status: int,
        body: bytes | str,
        with_body: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield hub
        hub.closing.set()
        hub.shutdown()


@contextmanager
def black_hole(*, drip: bool = False) -> Iterator[str]:
    """The address of a server that accepts and is silent, or sends a header byte by byte."""
    closing = threading.Event()

    def hold(connection: socket.socket) -> None:
        with connection:
            text = b"HTTP/1.1 200 OK\r\nX-Slow: " + b"." * 10_000
            for byte in text if drip else b"":
                if closing.is_set():
                    return
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.05)
            closing.wait(60)

    def accept() -> None:
        while not closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=hold, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        closing.set()
