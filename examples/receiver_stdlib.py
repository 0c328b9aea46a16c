"""Receive alerts with Python's standard library alone: its HTTPS server, hmac, and no package at all.

    python3 examples/receiver_stdlib.py CERTIFICATE_FOLDER SECRET_FILE [PORT]

The arguments are those of receiver_python.py. The check is Standard Webhooks 1.0; this shows all that it takes. Each
alert is printed once. In production remember the ids in your database, in the transaction that acts on the alert.
"""

import base64
import hmac
import ssl
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import ClassVar

TOLERANCE_SECONDS = 300
BODY_BYTES_MAX = 1_048_576
IDS_KEPT_MAX = 100_000


def key_of(secret: str) -> bytes:
    """Return the key of a secret: the octets behind ``whsec_``, or the secret's own."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"))
    return secret.encode()


def is_ours(body: bytes, headers: Mapping[str, str], keys: list[bytes]) -> bool:
    """Say whether one of *keys* signed the octets *body*, not long ago."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    id_, timestamp, offered = (headers.get(name, "") for name in names)
    # isdecimal() alone would let digits of other scripts pass.
    if not (id_ and timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        return False
    if abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    signed = f"{id_}.{timestamp}.".encode() + body
    right = [b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256")) for key in keys]
    # As octets: compare_digest() refuses texts that are not ASCII. And all of them, whichever is right.
    matches = [hmac.compare_digest(one, word.encode()) for one in right for word in offered.split(" ")]
    return any(matches)


class AlertHandler(BaseHTTPRequestHandler):
    """One connection; each POST on it is an alert."""

    protocol_version = "HTTP/1.1"
    timeout = 75
    keys: ClassVar[list[bytes]] = []
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
        if not is_ours(body, self.headers, self.keys):
            print("refused", flush=True)
            self.answer(401)
            return
        if self.is_new(self.headers["webhook-id"]):
            print(f"alert {self.headers['webhook-id']} {body.decode()}", flush=True)
        # A repeat is answered like the first: what the sender wants to know is that we have it.
        self.answer(204)

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
    AlertHandler.keys = [key_of(secret) for secret in Path(secret_file).read_text().split()]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(folder) / "cert.pem", Path(folder) / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), AlertHandler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"listening on https://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
