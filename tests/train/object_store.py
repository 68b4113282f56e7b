"""A bucket of Google Cloud Storage on this machine: its JSON API over HTTP, with generations and their preconditions.

What gcsfs and TensorStore ask of a flat bucket, no more: rights, rates, regions and folders are not there.
"""

import http.server
import itertools
import json
import re
import threading
import urllib.parse

OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:moveTo/o|(?:copy|rewrite)To/b/[^/]+/o)/([^/]+)")


class Bucket(http.server.ThreadingHTTPServer):
    """Serves `gs://bucket` in a thread while it is open; `contents` are its objects by name."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.generations = {}, {}
        self.lock, self.numbers, self.uploads = threading.RLock(), itertools.count(1), {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def put(self, name, data):
        self.contents[name], self.generations[name] = data, next(self.numbers)

    def remove(self, name):
        del self.contents[name], self.generations[name]

    def describe(self, name):
        generation = str(self.generations[name])
        return dict(
            kind="storage#object", bucket="bucket", name=name, size=str(len(self.contents[name])),
            generation=generation, metageneration="1", id=f"bucket/{name}/{generation}",
            updated="2026-01-01T00:00:00.000Z", timeCreated="2026-01-01T00:00:00.000Z",
        )  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests one at a time, as the real store orders those for an object."""

    protocol_version = "HTTP/1.1"

    def handle_request(self):
        parts = urllib.parse.urlsplit(self.path)
        self.query = {name: values[0] for name, values in urllib.parse.parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.route(parts.path)

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, *_):
        pass

    def answer(self, value=b"", status=200, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status):
        self.answer(
            {"error": {"code": status, "message": http.server.BaseHTTPRequestHandler.responses[status][0]}}, status
        )

    def refused(self, name):
        """Answers where a precondition on the generation fails."""
        now = str(self.server.generations.get(name, 0))
        if self.query.get("ifGenerationMatch", now) != now:
            self.refuse(412)
        elif self.query.get("ifGenerationNotMatch") == now:
            self.answer(status=304)
        else:
            return False
        return True

    def route(self, path):
        if path.startswith("/upload/"):
            self.upload()
        elif path == "/storage/v1/b/bucket":
            self.answer({"kind": "storage#bucket", "name": "bucket", "id": "bucket"})
        elif path == "/storage/v1/b/bucket/o":
            self.list()
        elif found := MOVE.fullmatch(path):
            self.move(*map(urllib.parse.unquote, found.groups()[1:]), keep="/moveTo/" not in path)
        elif (found := OBJECT.fullmatch(path)) and found[1] == "bucket":
            self.one(urllib.parse.unquote(found[2]))
        else:
            self.refuse(404)

    def one(self, name):
        store = self.server
        if self.refused(name):
            return
        if name not in store.contents:
            self.refuse(404)
        elif self.command == "DELETE":
            store.remove(name)
            self.answer(status=204)
        elif self.query.get("alt") == "media":
            self.read(name)
        else:
            self.answer(store.describe(name))

    def read(self, name):
        data, headers = self.server.contents[name], {"X-Goog-Generation": str(self.server.generations[name])}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(data, **headers)
        first, last = wanted.groups()
        begin = int(first) if first else len(data) - int(last)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if begin >= max(end, 1):
            return self.refuse(416)
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        return self.answer(data[begin:end], 206, **headers)

    def list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.server.contents):
            if not name.startswith(prefix) or name < self.query.get("startOffset", ""):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.server.describe(name))
        self.answer({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def move(self, source, target, keep):
        store = self.server
        if source not in store.contents:
            return self.refuse(404)
        store.put(target, store.contents[source])
        if not keep:
            store.remove(source)
        return self.answer(store.describe(target) if not keep else {"done": True, "resource": store.describe(target)})

    def upload(self):
        kind, store = self.query.get("uploadType"), self.server
        if "upload_id" in self.query:
            return self.resume(self.query["upload_id"])
        if kind == "multipart":
            mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, content, _ = self.body.split(b"--" + mark)
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            data = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
        else:
            name, data = self.query.get("name") or json.loads(self.body)["name"], self.body
        if self.refused(name):
            return None
        if kind == "resumable":
            token = str(next(store.numbers))
            store.uploads[token] = (name, b"")
            return self.answer(
                Location=f"{store.url}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={token}"
            )
        store.put(name, data)
        return self.answer(store.describe(name))

    def resume(self, token):
        name, data = self.server.uploads[token]
        data += self.body
        if self.headers["Content-Range"].endswith("/*"):
            self.server.uploads[token] = (name, data)
            return self.answer(status=308, Range=f"bytes=0-{len(data) - 1}")
        self.server.put(name, data)
        return self.answer(self.server.describe(name))
