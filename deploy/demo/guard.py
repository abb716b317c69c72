"""Who may ask the demo's server: the token, the page's own origin, and this machine's own names."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from deploy.errors import LabError

TOKEN_VARIABLE = "EDGELAB_TOKEN"
MIN_TOKEN = 16
"""Characters of a token that a user chooses; one that is generated has 22, of 128 random bits."""


class RefusedError(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, text: str, headers: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address. A name other than localhost is not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, given: str | None) -> tuple[str | None, bool]:
    """The token that a server on this address asks for, and whether it was made here.

    given: the command's own, else that of the environment variable EDGELAB_TOKEN. On a loopback address none
    is needed. Raises LabError for one that is short or does not fit into a header.
    """
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE)
    if token is not None:
        check_token(token)
        return token, False
    return (None, False) if is_loopback(host) else (secrets.token_urlsafe(16), True)


def check_token(token: str) -> None:
    """Raises LabError, without the token in its text."""
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise LabError(
            f"the token has {len(token)} characters: use at least {MIN_TOKEN} letters, digits, '.', '_', '~' "
            "or '-'; or leave it out, and one is made"
        )


def check_page(headers: Mapping[bytes, bytes], token: str | None) -> None:
    """Raises RefusedError where the page itself, which holds only what is published, must not be given.

    Without a token the name in `Host` must be a loopback's: a foreign name that was pointed at 127.0.0.1
    (DNS rebinding) would make a foreign page ours.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    if token is None and not is_loopback(_hostname(host)):
        raise RefusedError(
            403, f"this demo answers to localhost only, not to {host!r:.60}; start it with --host for more"
        )


def check_data(headers: Mapping[bytes, bytes], token: str | None) -> None:
    """Raises RefusedError for everything that is not the page's own request, or comes without the token."""
    check_page(headers, token)
    if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
        raise RefusedError(403, "a page of another site may not ask this demo")
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        raise RefusedError(403, "a page of another site may not ask this demo")
    if token is not None:
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + token.encode()):
            raise RefusedError(
                401, "the token is missing or wrong; it was printed where the demo was started",
                {b"www-authenticate": b"Bearer"},
            )  # fmt: skip


def _hostname(host: str) -> str:
    """Of a Host header, without the port and the brackets of IPv6; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
