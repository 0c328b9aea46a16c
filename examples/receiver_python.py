"""Receive alerts: Python's own HTTPS server, and `pggit_reactor.verify`.

    python3 examples/receiver_python.py CERTIFICATE_FOLDER SECRET_FILE [PORT]

The folder holds cert.pem and key.pem (examples/make_certificate.sh makes them); the file holds the signing secret
that `webhook add` printed, or was given. Two lines are two secrets, for while one replaces the other. Each alert
is printed once: a delivery that is sent again comes under the same webhook-id.

What to do otherwise in production: remember the ids in your database, in the transaction that acts on the alert.
"""

import ssl
import sys
from collections import OrderedDict
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from pggit_reactor import VerificationError, verify

BODY_BYTES_MAX = 1_048_576
IDS_KEPT_MAX = 100_000
PORT_DEFAULT = "8443"


class SeenIds:
    """The ids of the latest deliveries."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    def is_new(self, delivery_id: str) -> bool:
        """Return whether this id has not been seen, and remember it."""
        with self._lock:
            if delivery_id in self._ids:
                return False
            self._ids[delivery_id] = None
            if len(self._ids) > IDS_KEPT_MAX:
                self._ids.popitem(last=False)
            return True


class AlertHandler(BaseHTTPRequestHandler):
    """One connection; each POST on it is an alert."""

    # Keeps connections open, which saves the sender a TLS handshake an alert.
    protocol_version = "HTTP/1.1"
    timeout = 75
    secrets: Sequence[str] = ()
    seen = SeenIds()

    def do_POST(self) -> None:
        """Verify first, and read the body as octets: what was signed is what came over the wire."""
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.answer(411)
            return
        if not 0 <= size <= BODY_BYTES_MAX:
            self.answer(413)
            return
        body = self.rfile.read(size)
        try:
            verify(body, self.headers, self.secrets)
        except VerificationError as error:
            print(f"refused: {error}", flush=True)
            self.answer(401)
            return
        # verify() takes either family of headers; where both are there, their ids are the same.
        delivery_id = self.headers["webhook-id"] or self.headers["X-pgGit-Delivery-ID"]
        if self.seen.is_new(delivery_id):
            print(f"alert {delivery_id} {body.decode()}", flush=True)
        # A repeat is answered like the first: what the sender wants to know is that we have it.
        self.answer(204)

    def answer(self, status: int) -> None:
        """Answer without a body. After a request that was not read to its end the connection is of no more use."""
        if status in {411, 413}:
            self.close_connection = True
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request: the path may be a secret."""


def main(folder: str, secret_file: str, port: str = PORT_DEFAULT) -> None:
    """Serve until interrupted."""
    AlertHandler.secrets = Path(secret_file).read_text().split()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(folder) / "cert.pem", Path(folder) / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), AlertHandler)
    server.daemon_threads = True
    # The handshake is left to the connection's own thread, so that a silent client stops nobody else.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"listening on https://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped")
