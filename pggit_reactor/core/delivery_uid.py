"""The delivery uid: a UUID of version 8 that holds the delivery's id and its salt.

The layout is that of the SQL function ``pggit.delivery_uid(bigint, bigint)`` (RFC 9562, 5.8), big-endian::

    custom_a  48 bits   the top 48 bits of delivery_id (two's complement)
    version    4 bits   8
    custom_b  12 bits   the next 12 bits of delivery_id
    variant    2 bits   0b10
    custom_c  62 bits   the last 4 bits of delivery_id, then the low 58 bits of uid_salt

So it is stable over all attempts, has an inverse, needs no index of its own, and does not come again in a
restored or truncated database, whose rows draw new salts. Whoever looks a delivery up by uid compares the
salt as well.
"""

from __future__ import annotations

import re
from typing import Final

from pggit_reactor.errors import NotFoundError

UID_SALT_BITS: Final = 58
UID_SALT_MASK: Final = (1 << UID_SALT_BITS) - 1

_BIGINT_BITS: Final = 64
_BIGINT_MASK: Final = (1 << _BIGINT_BITS) - 1
_UID: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)


def delivery_uid(delivery_id: int, uid_salt: int) -> str:
    """Return the uid as lower-case UUID text. Both arguments are PostgreSQL bigints, negative ones too."""
    assert -(1 << 63) <= delivery_id < 1 << 63
    bits = delivery_id & _BIGINT_MASK
    custom_c = (bits & 0xF) << UID_SALT_BITS | uid_salt & UID_SALT_MASK
    head = (bits >> 16) << 16 | 0x8000 | (bits >> 4) & 0xFFF
    tail = 0b10 << 62 | custom_c
    text = f"{head:016x}{tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def split_delivery_uid(uid: str) -> tuple[int, int]:
    """Return the delivery id and the 58 bits of salt that are in *uid*, whose letters may be of either case.

    `NotFoundError` for any text that `delivery_uid` could not have made: nothing has that uid.
    """
    if not _UID.fullmatch(uid):
        raise NotFoundError(
            "no delivery has that uid: a delivery uid is a UUID of version 8, such as 00000000-..."
        )
    digits = uid.replace("-", "")
    head, tail = int(digits[:16], 16), int(digits[16:], 16)
    bits = (head >> 16) << 16 | (head & 0xFFF) << 4 | (tail >> UID_SALT_BITS) & 0xF
    delivery_id = bits - (1 << _BIGINT_BITS) if bits >> 63 else bits
    return delivery_id, tail & UID_SALT_MASK
