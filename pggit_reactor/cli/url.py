"""`url check`: what the URL policy says, of one URL or of a stream of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.judging import require_good_url
from pggit_reactor.cli.output import json_option, print_json
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.url_policy import EgressRules, judge_addresses, parse_target
from pggit_reactor.errors import UrlRefusedError

LINE_OCTETS_MAX: Final = 1_048_576
LOOK_UPS_MAX: Final = 1000
ADDRESSES_MAX: Final = 1000

_GOOD: Final = "every address is allowed"


@click.group()
def url() -> None:
    """Ask the URL policy.

    \b
    Example: pggit-reactor url check https://hooks.example.com/alerts
    """


@url.command()
@click.argument("address", metavar="[URL]", required=False)
@click.option("--jsonl", is_flag=True, help="Judge the lines of standard input, and answer a line for each.")
@json_option
@pass_session
def check(session: Session, address: str | None, jsonl: bool, as_json: bool) -> int:
    """Say whether a delivery to URL would be allowed; exit 3 where not.

    The name is looked up now, and every address is judged, by the rules of the settings egress.*.

    With --jsonl each line of standard input is an object, {"url": ..., "answers": [[address, ...], ...]}:
    answers are successive look-ups, null for one that failed; without answers the name is looked up. One line
    comes back for each: {"verdict": "accept" or "reject", "why": ...}. A bad address in any answer rejects, as
    does an answer that failed or is empty, and a line that is malformed. The exit status is 0.

    \b
    Example: pggit-reactor url check https://hooks.example.com/alerts
             echo '{"url": "https://a.example/", "answers": [["10.0.0.1"]]}' | pggit-reactor url check --jsonl
    """
    if jsonl == (address is not None):
        raise click.UsageError("give one URL, or --jsonl and lines on standard input")
    rules = session.settings.egress.rules()
    if address is None:
        return session.run(lambda: _judge_lines(rules))
    judgement = session.run(lambda: _judge_one(address, rules, as_json=as_json))
    return Exit.DONE if judgement else Exit.TROUBLE


async def _judge_one(address: str, rules: EgressRules, *, as_json: bool) -> bool:
    try:
        judgement = await require_good_url(address, rules)
    except UrlRefusedError as error:
        if not as_json:
            raise
        print_json({"verdict": "reject", "why": str(error)})
        return False
    if as_json:
        print_json({"verdict": "accept", "why": _GOOD, "addresses": judgement.addresses})
    else:
        click.echo(f"accepted: {judgement.target.origin} ({', '.join(judgement.addresses)})")
    return True


async def _judge_lines(rules: EgressRules) -> Exit:
    # Nothing else runs here, so reading may block.
    for line in _lines(sys.stdin.buffer):
        try:
            why, verdict = await _judge_line(line, rules), "accept"
        except (UrlRefusedError, _MalformedError) as error:
            why, verdict = str(error), "reject"
        # At once: whoever writes the lines may wait for the answer before the next.
        click.echo(json.dumps({"verdict": verdict, "why": why}))
    return Exit.DONE


class _MalformedError(Exception):
    """A line is not of the form; the text says how."""


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of *stream* without their ends; None for one that is too long."""
    while line := stream.readline(LINE_OCTETS_MAX + 1):
        if len(line) > LINE_OCTETS_MAX and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_OCTETS_MAX)) and not rest.endswith(b"\n"):
                pass
            yield None
            continue
        yield line.rstrip(b"\r\n")


async def _judge_line(line: bytes | None, rules: EgressRules) -> str:
    """Return why the line's URL is accepted; raise why it is not."""
    if line is None:
        raise _MalformedError(f"the line has more than {LINE_OCTETS_MAX} octets")
    asked = _parse(line)
    address = asked.get("url")
    if not isinstance(address, str):
        raise _MalformedError("the line's url is missing or no string")
    if "answers" not in asked:
        judgement = await require_good_url(address, rules)
        return f"{_GOOD}: {', '.join(judgement.addresses)}"
    answers = _answers(asked["answers"])
    target = parse_target(address, rules)
    for number, answer in enumerate(answers, start=1):
        if answer is None:
            raise UrlRefusedError(f"look-up {number} failed")
        judge_addresses(target, answer, rules)
    return f"{_GOOD}, in {len(answers)} look-up(s)"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        # Not its text, which may quote the line.
        raise _MalformedError("the line is not JSON in UTF-8 with unique names") from error
    if not isinstance(asked, dict):
        raise _MalformedError("the line is no JSON object")
    return asked


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Two parsers could see two URLs in it.
        raise ValueError("a name stands twice")
    return members


def _answers(value: object) -> Sequence[Sequence[str] | None]:
    form = "answers must be a list of look-ups, each a list of addresses or null"
    if not isinstance(value, list) or not 1 <= len(value) <= LOOK_UPS_MAX:
        raise _MalformedError(f"{form}; 1 to {LOOK_UPS_MAX} of them")
    for answer in value:
        if answer is None:
            continue
        if not isinstance(answer, list) or len(answer) > ADDRESSES_MAX:
            raise _MalformedError(f"{form}; at most {ADDRESSES_MAX} addresses in each")
        if not all(isinstance(address, str) for address in answer):
            raise _MalformedError(form)
    return value
