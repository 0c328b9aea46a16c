"""From what the operating system and OpenSSL say to what a person can act on.

`AttemptError` never leaves this room: the sender turns it into an `AttemptFailure`. The texts name the
reason and hold no URL path, no header and no payload.
"""

from __future__ import annotations

import errno
import socket
import ssl
from types import MappingProxyType
from typing import Final, TypeGuard

from pggit_reactor.core.model import AttemptFailure, FailureKind

DETAIL_CHARS_MAX: Final = 500


class AttemptError(Exception):
    """There will be no answer; *failure* says why. Internal to the delivery room."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(kind, detail)
        self.failure = AttemptFailure(kind=kind, detail=detail[:DETAIL_CHARS_MAX])


# X509_V_ERR_* of OpenSSL: the ssl module hands out the numbers, and names none of them.
_CERTIFICATE_TEXTS: Final = MappingProxyType(
    {
        2: "the certificate chain is incomplete",
        7: "the certificate's signature is wrong",
        9: "the certificate is not yet valid",
        10: "the certificate has expired",
        18: "the certificate is self-signed and not trusted",
        19: "the certificate chain ends in a self-signed authority that is not trusted",
        20: "the certificate is signed by an authority that is not trusted",
        21: "the certificate chain is incomplete or its authority is not trusted",
        23: "the certificate is revoked",
        24: "a certificate of the chain is no authority's",
        25: "the certificate chain is longer than its authority allows",
        26: "the certificate may not be used for a TLS server",
        47: "the certificate's authority may not vouch for this name",
        48: "the certificate's authority may not vouch for this name",
        62: "the certificate is for another host name",
        64: "the certificate is for another address",
        66: "the certificate's key is too weak",
        67: "the certificate authority's key is too weak",
        68: "the certificate is signed with too weak a digest",
        79: "a certificate of the chain is no authority's",
    }
)

_NO_VERSION: Final = (
    "the receiver offers no version of TLS that we accept (1.2 or later; egress.tls_min_version)"
)
_REFUSED_OURS: Final = "the receiver refused our client certificate"
_TLS_REASONS: Final = MappingProxyType(
    {
        "WRONG_VERSION_NUMBER": "the receiver does not speak TLS on this port",
        "HTTP_REQUEST": "the receiver does not speak TLS on this port",
        "PACKET_LENGTH_TOO_LONG": "the receiver does not speak TLS on this port",
        "RECORD_LAYER_FAILURE": "the receiver does not speak TLS on this port",
        "UNSUPPORTED_PROTOCOL": _NO_VERSION,
        "TLSV1_ALERT_PROTOCOL_VERSION": _NO_VERSION,
        # TLS 1.2 has one word for both.
        "SSLV3_ALERT_HANDSHAKE_FAILURE": "the receiver refused the handshake: no common cipher, or it requires a "
        "client certificate",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the receiver requires a client certificate",
        "TLSV1_UNRECOGNIZED_NAME": "the receiver does not know this host name",
        "SSLV3_ALERT_BAD_CERTIFICATE": f"{_REFUSED_OURS}: it is malformed or its signature is wrong",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": f"{_REFUSED_OURS}: it is of a kind that it does not take",
        "SSLV3_ALERT_CERTIFICATE_REVOKED": f"{_REFUSED_OURS}: it is revoked",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{_REFUSED_OURS}: it has expired",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _REFUSED_OURS,
        "TLSV1_ALERT_UNKNOWN_CA": f"{_REFUSED_OURS}: it does not trust its authority",
        "TLSV1_ALERT_ACCESS_DENIED": f"{_REFUSED_OURS}: access denied",
        "TLSV1_ALERT_DECRYPT_ERROR": f"{_REFUSED_OURS}: it does not fit its key",
        "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "the TLS stream was damaged on its way",
    }
)

_CONNECT_TEXTS: Final = MappingProxyType(
    {
        errno.ECONNREFUSED: "connection refused",
        errno.EHOSTUNREACH: "no route to the host",
        errno.ENETUNREACH: "network unreachable",
        errno.EHOSTDOWN: "the host is down",
        errno.ETIMEDOUT: "the network gave up connecting",
        errno.ECONNRESET: "the connection was reset while it was opened",
        errno.EACCES: "the local firewall forbids the connection",
        errno.EPERM: "the local firewall forbids the connection",
        errno.EADDRNOTAVAIL: "no local address or port is left to connect from",
        errno.EMFILE: "this process has no file descriptor left",
        errno.ENFILE: "this machine has no file descriptor left",
    }
)

_LOOKUP_TEXTS: Final = MappingProxyType(
    {
        socket.EAI_NONAME: "the name does not exist",
        socket.EAI_NODATA: "the name has no address",
        socket.EAI_AGAIN: "the name server does not answer for now",
        socket.EAI_FAIL: "the name server failed",
    }
)

_NO_ANSWER: Final = "the receiver closed the connection without an answer"


def look_up_failed(host: str, error: OSError) -> AttemptError:
    """Return why *host* has no addresses."""
    reason = _LOOKUP_TEXTS.get(error.errno or 0, "the look-up failed")
    return AttemptError(FailureKind.DNS, f"{host}: {reason}")


def connect_failed(address: str, port: int, error: OSError) -> AttemptError:
    """Return why no TCP connection was made; *address* is the one that was tried."""
    reason = _CONNECT_TEXTS.get(error.errno or 0) or _symbol(error)
    return AttemptError(FailureKind.CONNECT, f"{_with_port(address, port)}: {reason}")


def handshake_failed(host: str, error: OSError) -> AttemptError:
    """Return why TLS was not agreed on; a connection cut in mid-handshake is a reset, not a fault of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _CERTIFICATE_TEXTS.get(error.verify_code, "the certificate does not verify")
        return AttemptError(FailureKind.TLS, f"{host}: {reason} (OpenSSL {error.verify_code})")
    if is_fault_of_tls(error):
        return AttemptError(FailureKind.TLS, f"{host}: {_tls_reason(error)}")
    return AttemptError(FailureKind.RESET, f"{host}: the connection was cut during the TLS handshake")


def is_fault_of_tls(error: OSError) -> TypeGuard[ssl.SSLError]:
    """Whether OpenSSL or the other side's OpenSSL objects to something; a mere end of the connection is none."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def pin_mismatch(host: str, seen: str) -> AttemptError:
    """Return that the receiver's key is another than the webhook's pins say; *seen* is what they would be."""
    return AttemptError(
        FailureKind.TLS, f"{host}: the receiver's key is none of the pinned ones; it is {seen}"
    )


def connection_lost(error: OSError | None, *, answer_began: bool) -> AttemptError:
    """Return why there is no answer: the connection ended, by *error* or by a plain end (None)."""
    if answer_began:
        return AttemptError(FailureKind.RESET, "the connection ended in the middle of the answer's head")
    if error is None:
        return AttemptError(FailureKind.RESET, _NO_ANSWER)
    if is_fault_of_tls(error):
        return AttemptError(FailureKind.TLS, _tls_reason(error))
    if error.errno == errno.ETIMEDOUT:
        return AttemptError(FailureKind.RESET, "the network gave the connection up")
    # Python's ssl module hides a reset behind "end of stream", so one text serves for both.
    return AttemptError(FailureKind.RESET, _NO_ANSWER)


def _tls_reason(error: ssl.SSLError) -> str:
    code = error.reason or "unknown"
    text = _TLS_REASONS.get(code)
    return f"{text} ({code})" if text else f"TLS failed ({code})"


def _symbol(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "the connection failed")


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
