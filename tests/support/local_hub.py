"""A hub of data sets on this machine: as much of the API as `datasets` and HfFileSystem ask for.

Source: https://huggingface.co/docs/hub/api, and the requests of huggingface_hub itself.
"""

import hashlib
import json
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    def __init__(self, name, files, *arguments):
        self.name, self.files = name, files
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = unquote(urlsplit(self.path).path)
        content = self.content(path, body)
        self.send_response(404 if content is None else 200)
        if content is None:
            of_repository = path.startswith(f"/datasets/{self.name}/")
            code = "EntryNotFound" if of_repository else "RepoNotFound"
            self.send_header("X-Error-Code", code)
        elif isinstance(content, bytes):
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        out = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(out)

    do_GET = do_HEAD = do_POST = answer

    def content(self, path, body):
        api = f"/api/datasets/{self.name}"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            return {"id": self.name, "_id": "0", "sha": COMMIT, "siblings": siblings, "tags": []}
        if path.startswith(f"{api}/tree/"):
            return self.tree(path.removeprefix(f"{api}/tree/").partition("/")[2])
        if path.startswith(f"{api}/paths-info/"):
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            return [entry for entry in self.entries() if entry["path"] in wanted]
        start = f"/datasets/{self.name}/resolve/"
        if path.startswith(start):
            return self.files.get(path.removeprefix(start).partition("/")[2])
        return None

    def entries(self):
        folders = {name.rpartition("/")[0] for name in self.files if "/" in name}
        return [
            *({"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders)),
            *(
                {"type": "file", "path": name, "size": len(content), "oid": "0"}
                for name, content in self.files.items()
            ),
        ]

    def tree(self, folder):
        return [entry for entry in self.entries() if entry["path"].rpartition("/")[0] == folder]


@contextmanager
def served(handler):
    """The address of a server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def local_hub(name, files):
    """A hub with one data set of these files."""
    return served(partial(Hub, name, files))
