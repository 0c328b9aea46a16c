"""The front of receiver.sql: an HTTPS server that hands requests to PostgreSQL, which verifies them and decides.

    python3 examples/receiver_sql.py CERTIFICATE_FOLDER [PORT]

The database is that of PGGIT_REACTOR_DATABASE_URL, where receiver.sql was run. This program never sees the secrets.
"""

import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg

BODY_BYTES_MAX = 1_048_576


class AlertHandler(BaseHTTPRequestHandler):
    """One connection, and one to the database with it."""

    protocol_version = "HTTP/1.1"
    timeout = 75

    def setup(self) -> None:
        """Connect to the database."""
        super().setup()
        self.database = psycopg.connect(os.environ["PGGIT_REACTOR_DATABASE_URL"], autocommit=True)

    def finish(self) -> None:
        """Leave it."""
        self.database.close()
        super().finish()

    def do_POST(self) -> None:
        """Hand the octets as they came, and the headers, to the function; answer what it says."""
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdecimal() and int(size[:9]) <= BODY_BYTES_MAX and len(size) <= 9):
            self.close_connection = True
            self.answer(413)
            return
        body = self.rfile.read(int(size))
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = "SELECT alert_inbox.receive_alert(%b, %s)"
        row = self.database.execute(query, (body, json.dumps(headers))).fetchone()
        self.answer(row[0])

    def answer(self, status: int) -> None:
        """Answer without a body."""
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request: the path may be a secret."""


def main(folder: str, port: str = "8443") -> None:
    """Serve until interrupted."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(folder) / "cert.pem", Path(folder) / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), AlertHandler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"listening on https://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
