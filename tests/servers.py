"""Servers on this machine for the download tests: one that serves, one that stays silent."""

import contextlib
import functools
import http.server
import socket
import threading


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, notes what was asked for, and breaks off files named in `broken`."""

    def __init__(self, *args, asked=None, broken=(), **kwargs):
        self.asked, self.broken = asked, broken
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.rsplit("/", 1)[-1] in self.broken:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"only a part")
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder, broken=()):
    """(address, list of the paths asked for) of a server of `folder`."""
    asked = []
    handler = functools.partial(Handler, directory=str(folder), asked=asked, broken=broken)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # clients that hang up are expected
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@contextlib.contextmanager
def silent():
    """Address of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refused() -> str:
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"
