"""Reads the answer to one request from octets as they arrive. No I/O here.

Theory of operation. llhttp (httptools) frames the answer and refuses nearly all that is malformed: over our
corpus it is stricter than h11, which takes bare LF, folded fields, control characters and repeated lengths,
and it costs 2 us an answer against 60. What llhttp tolerates and we do not is checked here, on the head's
octets, before anything is believed: the whole status line with its version, and any transfer coding other
than a single ``chunked``. The head is split off by its end mark, so that its limit is exact and an answer
to HEAD can do without framing.

From the moment that the whole head of the final answer is here, the answer counts. A body that is cut,
malformed or over-long only makes the connection unfit for another request.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.failures import AttemptError

HEAD_OCTETS_MAX: Final = 32 * 1024
HEADER_FIELDS_MAX: Final = 100
INTERIM_ANSWERS_MAX: Final = 20
BODY_OCTETS_MAX: Final = 64 * 1024  # as they come over the wire, chunk framing included
FRAMING_OCTETS_MAX: Final = 8 * 1024  # chunk sizes, extensions and trailers: what is no body
RETRY_AFTER_CHARS_MAX: Final = 64

_FRAMING: Final = frozenset({b"transfer-encoding", b"content-length"})
_HEAD_END: Final = b"\r\n\r\n"
# Possessive, so that no octets can make it backtrack.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n")


class AnswerReader:
    """One answer. Feed it octets until `complete`; then ask what it was and whether the connection may go on.

    `feed` raises `AttemptError` (malformed) only while `status` is None; from then on it never raises. At
    most *keep_octets_max* octets of the body are kept. *head_only*: the request was HEAD, so no body
    follows.
    """

    __slots__ = (
        "_body",
        "_body_octets",
        "_chunked",
        "_framed",
        "_head",
        "_head_only",
        "_interim_count",
        "_keep_alive",
        "_keep_octets_max",
        "_kept_octets",
        "_length",
        "_parser",
        "_payload_octets",
        "_surplus",
        "body_whole",
        "complete",
        "fields",
        "retry_after",
        "reusable",
        "started",
        "status",
    )

    def __init__(self, *, keep_octets_max: int, head_only: bool = False) -> None:
        self.started = False
        """At least one octet came: the request reached somebody, so it is never sent again by itself."""
        self.status: int | None = None
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False
        """Nothing more is to be read: the answer is whole, or the rest of it is not wanted."""
        self.body_whole = False
        """The body arrived as its framing promised."""
        self.retry_after: str | None = None
        """`Retry-After` as sent, cut short; what it means is the core's to say."""
        self.reusable = False
        """The connection stands exactly before the next answer, and the receiver keeps it open."""
        self._head = b""
        self._head_only = head_only
        self._interim_count = 0
        self._framed = False
        self._keep_alive = False
        self._surplus = False
        self._chunked = False
        self._length: int | None = None
        self._body: list[bytes] = []
        self._body_octets = 0
        self._payload_octets = 0
        self._kept_octets = 0
        self._keep_octets_max = keep_octets_max
        # The parser holds callbacks of ours: `_finish` breaks the circle, so that no collector has to.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, octets: bytes) -> None:
        """Take the next *octets* (not empty), in the order of their arrival."""
        self.started = True
        if self.status is None:
            octets = self._feed_heads(octets)
        if self.status is not None and not self.complete:
            self._feed_body(octets)

    def feed_end(self) -> None:
        """Take the end of the connection: it ends a body that has no other end."""
        if self.status is not None and not self.complete:
            until_close = self._length is None and not self._chunked
            self._finish(body_whole=until_close)

    def body(self) -> bytes:
        """Return what was kept of the body."""
        return b"".join(self._body)

    def excerpt(self) -> str:
        """Return what was kept of the body as text for people: one line, nothing that rules a terminal."""
        text = self.body().decode("utf-8", "replace")
        # Control characters would rule a terminal, direction marks turn a line of a log around, and what is
        # invisible could hide words from whoever searches for them.
        return text if text.isprintable() else "".join(map(_printable, text))

    def _feed_heads(self, octets: bytes) -> bytes:
        """Read heads, interim ones too, until the final one is whole; return the octets after it."""
        while octets:
            before = len(self._head)
            head = self._head + octets
            end = head.find(_HEAD_END, max(0, before - 3))
            size = len(head) if end < 0 else end + 4
            if size > HEAD_OCTETS_MAX:
                raise _malformed(f"the head is larger than {HEAD_OCTETS_MAX} octets")
            fresh, octets = octets[: size - before], octets[size - before :]
            self._parse(fresh)
            if end < 0:
                self._head = head
                return b""
            self._head = b""
            self._take_head(head)
            if self.status is not None:
                return octets
        return b""

    def _parse(self, octets: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(octets)
        except httptools.HttpParserUpgrade:
            raise _malformed("it switches protocols (101), which nobody asked for") from None
        except httptools.HttpParserError as error:
            # llhttp's texts are fixed ones: nothing of the answer is in them.
            raise _malformed(str(error) or "not HTTP/1.1") from None

    def _take_head(self, head: bytes) -> None:
        match = _STATUS_LINE.match(head)
        if match is None:
            raise _malformed("the status line is not that of HTTP/1.0 or 1.1")
        if len(self.fields) > HEADER_FIELDS_MAX:
            raise _malformed(f"it has more than {HEADER_FIELDS_MAX} header fields")
        status = int(match[2])
        if status < 200:
            self._take_interim(status)
            return
        self._take_framing(status, old=match[1] == b"0")
        self.status = status

    def _take_interim(self, status: int) -> None:
        if status == 101:
            raise _malformed("it switches protocols (101), which nobody asked for")
        self._interim_count += 1
        if self._interim_count > INTERIM_ANSWERS_MAX:
            raise _malformed(f"more than {INTERIM_ANSWERS_MAX} interim answers came")
        if any(name.lower() == b"transfer-encoding" for name, _ in self.fields):
            # It can have no body, and who reads one into it would see other answers behind it (RFC 9112, 6.1).
            raise _malformed("an interim answer has a Transfer-Encoding")
        self.fields = []
        self._framed = False

    def _take_framing(self, status: int, *, old: bool) -> None:
        for name, value in self.fields:
            lower_name = name.lower()
            if lower_name == b"content-length":
                self._length = int(value)  # llhttp let through digits only, once, and below 2**64
            elif lower_name == b"retry-after" and self.retry_after is None:
                self.retry_after = value[:RETRY_AFTER_CHARS_MAX].decode("latin-1").strip()
            elif lower_name == b"transfer-encoding":
                if old or self._chunked or value.strip().lower() != b"chunked":
                    raise _malformed("its Transfer-Encoding is not a single 'chunked'")
                self._chunked = True
        if status == 204 and (self._length or self._chunked):
            self._keep_alive = False  # A body is promised where none may be: who knows what follows.

    def _feed_body(self, octets: bytes) -> None:
        if self._framed or self._head_only:
            self._surplus = bool(octets)
            self._finish(body_whole=True)
        elif octets:
            self._parse_body(octets)

    def _parse_body(self, octets: bytes) -> None:
        assert self._parser is not None
        self._body_octets += len(octets)
        try:
            self._parser.feed_data(octets)
        except httptools.HttpParserError:
            # After the message's end this is surplus, before it a malformed body: unfit for reuse both ways.
            self._surplus = True
            self._finish(body_whole=self._framed)
            return
        overhead = self._body_octets - self._payload_octets
        if overhead > FRAMING_OCTETS_MAX or self._body_octets > BODY_OCTETS_MAX:
            self._finish(body_whole=False)
        elif self._framed:
            # llhttp skips line ends between messages in silence.
            beyond = self._length is not None and self._body_octets > self._length
            self._surplus |= beyond or octets.endswith(b"\r\n\r\n\r\n")
            self._finish(body_whole=True)
        elif self._body_octets >= BODY_OCTETS_MAX:
            self._finish(body_whole=False)

    def _finish(self, *, body_whole: bool) -> None:
        self.complete = True
        self.body_whole = body_whole
        self.reusable = body_whole and self._framed and self._keep_alive and not self._surplus
        self._parser = None

    # What llhttp calls.

    def on_message_begin(self) -> None:
        """Note octets that begin a second answer where only one was asked for."""
        self._surplus = self._framed

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; trailers are read and dropped, and may not speak of framing."""
        if self.status is None:
            self.fields.append((name, value))
        elif name.lower() in _FRAMING:
            self._surplus = True  # Another parser could see another end of the answer.

    def on_headers_complete(self) -> None:
        """Ask now whether the connection stays open: llhttp forgets it when the message ends."""
        assert self._parser is not None
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, octets: bytes) -> None:
        """Keep the first octets of the body; not of an answer that nobody asked for, behind it."""
        if self._framed:
            return
        self._payload_octets += len(octets)
        room = self._keep_octets_max - self._kept_octets
        if room > 0:
            piece = octets[:room]
            self._body.append(piece)
            self._kept_octets += len(piece)

    def on_message_complete(self) -> None:
        """Note that the message ended as its framing promised."""
        self._framed = True


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else "\ufffd"


def _malformed(reason: str) -> AttemptError:
    return AttemptError(FailureKind.MALFORMED, f"malformed answer: {reason}")
