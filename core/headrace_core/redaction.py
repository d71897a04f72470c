"""What no log of any process may show, and how a text is freed of it.

    by form     API keys, bearer tokens, sessions, passwords of addresses, values that are named `password=`, `api_key=`
    by value    what this process was given as a secret (`conceal`), and what its environment calls one

A secret without a form of its own, such as Redis' password or the judge's key, is known by value alone: whoever takes
one in conceals it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from .redis_address import masked

SHORTEST = 6
"""Characters: shorter secrets are not struck out by value, since they would take ordinary words with them."""
_MOST = 1000
"""Values that are kept; the oldest goes first."""

_NAMED = r"(?:password|api[-_]?key|secret|auth_token|access_token)"
"""What a value is called that is struck out, in quotes as far as they go, else up to the next space."""

_FORMS = (
    (re.compile(r"\bhr-[A-Za-z0-9_-]{8,}"), "hr-***"),
    (re.compile(r"\b(sk-|hf_)[A-Za-z0-9_-]{16,}"), r"\1***"),
    (re.compile(r"(?i)\b(bearer)(\s+|%20)[^\s'\",;)\]}]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(headrace_session=)[^\s'\",;)\]}]+"), r"\1***"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=,]\s*b?['\"]?basic)\s+[^\s'\",;)\]}]+"), r"\1 ***"),
    (re.compile(rf"(?i)({_NAMED}['\"]\s*[:,]\s*b?|{_NAMED}\s*[=:]\s*b?)(['\"])(?!\*\*\*)[^'\"]+"), r"\1\2***"),
    (
        re.compile(rf"(?i)({_NAMED}\s*=\s*|--{_NAMED}\s+|\bapi-key:\s+)(?!b?['\"]|\*\*\*)[^\s'\",;&)\]}}]+"),
        r"\1***",
    ),
)  # fmt: skip
_NAMES_A_SECRET = re.compile(r"(?:KEY|TOKEN|PASSWORD|SECRET)\Z|\AREWARD_ENDPOINT_", re.IGNORECASE)

_values: dict[str, None] = {}


def conceal(secret: str | None) -> None:
    """From now on, no line of this process' logs shows it, quoted for a URL or not."""
    for value in () if secret is None else (secret, unquote(secret), quote(secret, safe="")):
        if len(value) >= SHORTEST:
            _values[value] = None
    while len(_values) > _MOST:
        del _values[next(iter(_values))]


def conceal_password(url: str) -> None:
    """That of an address, if it has one."""
    try:
        conceal(urlsplit(url).password)
    except ValueError:  # no address: whoever uses it says so
        return


def conceal_environment(environment: Mapping[str, str]) -> None:
    """Variables that are called keys, tokens, passwords or secrets, and what rewards may send (`REWARD_ENDPOINT_…`)."""
    for name, value in environment.items():
        if _NAMES_A_SECRET.search(name):
            conceal(value)


def redacted(text: str) -> str:
    """`text` without the secrets in it."""
    for value in sorted(_values, key=len, reverse=True):  # a secret may be a part of another
        text = text.replace(value, "***")
    for pattern, shown in _FORMS:
        text = pattern.sub(shown, text)
    return masked(text)


conceal_environment(os.environ)
