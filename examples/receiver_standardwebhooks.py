"""Receive alerts with the library of Standard Webhooks: `pip install standardwebhooks`.

    python3 examples/receiver_standardwebhooks.py CERTIFICATE_FOLDER SECRET_FILE [PORT]

The arguments are those of receiver_python.py; the secrets must be whsec_ ones. Each alert is printed once. In
production remember the ids in your database, in the transaction that acts on the alert.
"""

import ssl
import sys
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import ClassVar

from standardwebhooks.webhooks import Webhook

BODY_BYTES_MAX = 1_048_576
IDS_KEPT_MAX = 100_000


class AlertHandler(BaseHTTPRequestHandler):
    """One connection; each POST on it is an alert."""

    protocol_version = "HTTP/1.1"
    timeout = 75
    webhooks: ClassVar[list[Webhook]] = []
    seen: ClassVar[OrderedDict[str, None]] = OrderedDict()
    lock = Lock()

    def do_POST(self) -> None:
        """Verify the octets as they came, before anything is done with them."""
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdecimal() and int(size[:9]) <= BODY_BYTES_MAX and len(size) <= 9):
            self.close_connection = True
            self.answer(413)
            return
        body = self.rfile.read(int(size))
        if not self.is_ours(body):
            print("refused", flush=True)
            self.answer(401)
            return
        if self.is_new(self.headers["webhook-id"]):
            print(f"alert {self.headers['webhook-id']} {body.decode()}", flush=True)
        # A repeat is answered like the first: what the sender wants to know is that we have it.
        self.answer(204)

    def is_ours(self, body: bytes) -> bool:
        """Say whether one of the secrets signed *body*."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        for webhook in self.webhooks:
            try:
                webhook.verify(body, headers)
            except Exception:  # noqa: BLE001  # it raises others than its own for what is malformed
                continue
            return True
        return False

    def is_new(self, delivery_id: str) -> bool:
        """Return whether this id has not been seen, and remember it."""
        with self.lock:
            is_new = delivery_id not in self.seen
            self.seen[delivery_id] = None
            if len(self.seen) > IDS_KEPT_MAX:
                self.seen.popitem(last=False)
            return is_new

    def answer(self, status: int) -> None:
        """Answer without a body."""
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request: the path may be a secret."""


def main(folder: str, secret_file: str, port: str = "8443") -> None:
    """Serve until interrupted."""
    AlertHandler.webhooks = [Webhook(secret) for secret in Path(secret_file).read_text().split()]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(folder) / "cert.pem", Path(folder) / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), AlertHandler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"listening on https://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
