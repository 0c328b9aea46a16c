"""What a receiver echoes in its answer: debugging receivers print all that they were sent, and people read answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

from pggit_reactor.core.model import Webhook
from pggit_reactor.core.signing_keys import PRIVATE_PREFIX, SECRET_PREFIX

_PIECE_CHARS_MIN: Final = 6
"""Shorter pieces of a URL are words, such as ``hooks``, and not what keeps it secret."""
_MASK: Final = "***"
_SIGNATURE: Final = re.compile(r"v1a?,[A-Za-z0-9+/=]*|sha256=[0-9a-f]*")


def mask_echoes(excerpt: str, webhook: Webhook, row_headers: Sequence[tuple[str, str]] = ()) -> str:
    """Return *excerpt* of an answer without what was sent and nobody may read.

    That is: parts of the URL's path and query, secrets, signatures, values of headers. *row_headers* are those
    of the delivery itself. The excerpt may end in the middle of one.
    """
    pieces = sorted(_pieces(webhook, row_headers), key=len, reverse=True)
    text = _SIGNATURE.sub(_MASK, excerpt)
    for piece in pieces:
        text = text.replace(piece, _MASK)
    for piece in pieces:
        for length in range(min(len(piece) - 1, len(text)), _PIECE_CHARS_MIN - 1, -1):
            if text.endswith(piece[:length]):
                return text[:-length] + _MASK
    return text


def _pieces(webhook: Webhook, row_headers: Sequence[tuple[str, str]]) -> set[str]:
    _, _, after_scheme = webhook.url.reveal().partition("://")
    _, _, path = after_scheme.partition("/")
    pieces = {path, *path.replace("?", "/").replace("&", "/").replace("=", "/").split("/")}
    # Most servers show a path as it is after decoding.
    pieces |= {unquote(piece) for piece in pieces}
    secrets = [secret.reveal() for secret in webhook.secrets]
    pieces.update(
        secrets, (secret.removeprefix(SECRET_PREFIX).removeprefix(PRIVATE_PREFIX) for secret in secrets)
    )
    for _, value in (*webhook.headers, *row_headers):
        # "Bearer TOKEN" may be echoed as the token alone.
        pieces.update((value, *value.split()))
    return {piece for piece in pieces if len(piece) >= _PIECE_CHARS_MIN}
