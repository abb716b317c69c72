"""Who may ask the demo: pure rules on headers, and the token."""

from __future__ import annotations

import pytest

from deploy.demo.guard import RefusedError, check_data, check_page, choose_token, is_loopback
from deploy.errors import LabError

TOKEN = "a-token-of-this-test"


def refusal(headers: dict[bytes, bytes], token: str | None = None) -> int:
    """The status, 0 where it is let through."""
    try:
        check_data(headers, token)
    except RefusedError as refused:
        return refused.status
    return 0


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("jetson", False),
        ("127.0.0.1.evil.org", False),
    ],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({b"host": b"127.0.0.1:8000"}, 0),
        ({b"host": b"localhost:9000"}, 0),
        ({b"host": b"[::1]:8000"}, 0),
        ({b"host": b"localhost"}, 0),
        ({}, 403),
        ({b"host": b"evil.example"}, 403),
        ({b"host": b"localhost.evil.example:8000"}, 403),
        ({b"host": b"[::1"}, 403),
        ({b"host": b"localhost:8000", b"origin": b"http://localhost:8000"}, 0),
        ({b"host": b"localhost:8000", b"origin": b"http://localhost:8001"}, 403),
        ({b"host": b"localhost:8000", b"origin": b"http://evil.example"}, 403),
        ({b"host": b"localhost:8000", b"origin": b"null"}, 403),
        ({b"host": b"localhost:8000", b"origin": b"http://[localhost:8000"}, 403),
        ({b"host": b"localhost:8000", b"sec-fetch-site": b"same-origin"}, 0),
        ({b"host": b"localhost:8000", b"sec-fetch-site": b"none"}, 0),
        ({b"host": b"localhost:8000", b"sec-fetch-site": b"same-site"}, 403),
        ({b"host": b"localhost:8000", b"sec-fetch-site": b"cross-site"}, 403),
    ],
)
def test_without_a_token_only_the_page_of_this_machine_may_ask(
    headers: dict[bytes, bytes], status: int
) -> None:
    assert refusal(headers) == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 0),
        (TOKEN, 401), (f"bearer {TOKEN}", 401), (f"Bearer {TOKEN}x", 401), (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401), ("", 401), ("Bearer ünïcode", 401),
    ],
)  # fmt: skip
def test_the_token_is_the_whole_token(given: str, status: int) -> None:
    assert refusal({b"host": b"jetson:8000", b"authorization": given.encode()}, TOKEN) == status


def test_the_token_does_not_open_the_door_to_other_sites() -> None:
    headers = {b"host": b"jetson", b"authorization": f"Bearer {TOKEN}".encode(), b"origin": b"http://evil"}
    assert refusal(headers, TOKEN) == 403


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return False

    monkeypatch.setattr("deploy.demo.guard.hmac.compare_digest", compare)
    assert refusal({b"host": b"jetson", b"authorization": b"Bearer x"}, TOKEN) == 401
    assert compared == [(b"Bearer x", f"Bearer {TOKEN}".encode())]


def test_the_page_itself_needs_no_token_but_its_own_name_where_there_is_none() -> None:
    check_page({b"host": b"jetson"}, TOKEN)
    with pytest.raises(RefusedError, match=r"localhost only, not to 'jetson'"):
        check_page({b"host": b"jetson"}, None)


def test_a_token_is_made_where_others_reach_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELAB_TOKEN", raising=False)
    assert choose_token("127.0.0.1", None) == (None, False)
    first, made = choose_token("0.0.0.0", None)
    second, _ = choose_token("0.0.0.0", None)
    assert made
    assert first is not None
    assert second is not None
    assert first != second
    assert len(first) >= 22


def test_a_token_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELAB_TOKEN", "from-the-environment")
    assert choose_token("0.0.0.0", None) == ("from-the-environment", False)
    assert choose_token("127.0.0.1", TOKEN) == (TOKEN, False)
    for bad in ("", "short", "no spaces in a token", "nor\nlines-in-it-please"):
        with pytest.raises(LabError, match="at least 16 letters") as caught:
            choose_token("0.0.0.0", bad)
        assert not bad or bad not in str(caught.value)
