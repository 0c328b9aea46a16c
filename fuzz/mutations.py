"""Makes new inputs out of seeds: the mutator of test runs, and of long ones without a guide."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

CHANGES_MAX = 6
INSERTED_MAX = 12

WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b".",
        b"..",
        b"@",
        b"#",
        b"?",
    ),
    *(
        b"/",
        b"\\",
        b"%",
        b"%00",
        b"%2e",
        b"[",
        b"]",
        b"::",
        b"::1",
        b"ffff:",
        b"0x",
        b"0",
        b"00",
        b"127",
        b"443",
    ),
    *(b"localhost", b"xn--", b"HTTP/1.1 ", b"100", b"200", b"204", b"Content-Length: ", b"chunked", b"GMT"),
    *(b"Transfer-Encoding: ", b"Connection: close\r\n", b"0\r\n\r\n", b"v1,", b"sha256=", b"=", b"-", b"+"),
    *(
        "。".encode(),
        "１".encode(),
        "ß".encode(),
        "é".encode(),
        "\u200b".encode(),
        "\u202e".encode(),
        b"\xff",
    ),
)
"""What parsers stumble over."""


def mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """Return a seed with a few changes: octets flipped, cut, repeated, put in, or taken from another seed."""
    octets = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, CHANGES_MAX)):
        at = random.randint(0, len(octets))
        match random.randint(0, 5):
            case 0 if octets:
                octets[at % len(octets)] ^= 1 << random.randint(0, 7)
            case 1:
                del octets[at : at + random.randint(1, INSERTED_MAX)]
            case 2:
                octets[at:at] = octets[at : at + random.randint(1, INSERTED_MAX)]
            case 3:
                octets[at:at] = random.choice(WORDS)
            case 4:
                octets[at:at] = random.randbytes(random.randint(1, INSERTED_MAX))
            case _:
                other = random.choice(seeds)
                octets[at:] = other[random.randint(0, len(other)) :]
    return bytes(octets)
