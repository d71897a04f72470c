"""Redis addresses: complete ones, with password and certificates, and masked ones for messages.

Invariants: the result of `masked` contains no password; `redis_address` inserts the password percent-encoded, so that
`masked` can find its end.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from .errors import InvalidRequest

_PASSWORD = re.compile(r"(\w+://[^:@/\s]*:)[^@/\s]+@|([?&]password=)[^&\s]+")


def masked(text: str) -> str:
    """`text` without the passwords of the addresses in it: `redis://ada:***@host`."""
    return _PASSWORD.sub(lambda match: f"{match[1]}***@" if match[1] else f"{match[2]}***", text)


def password_of(given: str | None, file: Path | None) -> str | None:
    """`given`, else the first line of `file`. Raises `InvalidRequest` where the file cannot be read."""
    if given is not None or file is None:
        return given
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0]
    except OSError as error:
        message = f"the file of Redis' password cannot be read: {error}"
        raise InvalidRequest(message, param="redis_password_file") from error


def checked_url(url: str) -> str:
    """Returns `url` unchanged. Raises `ValueError` where it is not the address of a Redis; the error does not repeat
    the address, which may contain a password."""
    forms = "write redis://host:6379/0, rediss://host:6379/0 or unix:///path/of/socket"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # suppressed by `from None`: its text may contain a part of the password
        raise ValueError(f"is no address of a Redis: {forms}, a password in it percent-encoded") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"is no address of a Redis, its scheme is {parts.scheme or 'missing'!r}: {forms}")
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.path == "/":
            raise ValueError(f"names no socket: {forms}")
    elif not parts.hostname or port == 0:
        raise ValueError(f"names no host: {forms}")
    elif parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise ValueError(f"names no database, which is a number: {forms}")
    return url


def redis_address(url: str, password: str | None, ca_file: Path | None) -> str:
    """`url` with the password and the certificate file added.

    Raises `InvalidRequest` where `url` already has a password, or certificates are given without TLS (rediss://).
    """
    parts = urlsplit(url)
    if password is not None:
        if parts.password is not None:
            raise InvalidRequest("Redis' password is given twice: in the URL and in a setting", param="redis_password")
        _, _, host = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{quote(parts.username or '', safe='')}:{quote(password, safe='')}@{host}")
    if ca_file is not None:
        if parts.scheme != "rediss":
            raise InvalidRequest(f"certificates are for rediss://, not for {parts.scheme}://", param="redis_ca_file")
        query = [*parse_qsl(parts.query), ("ssl_ca_certs", str(ca_file))]
        parts = parts._replace(query=urlencode(query))
    return parts.geturl()
