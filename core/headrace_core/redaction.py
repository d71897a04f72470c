"""Which secrets no log may show, and how they are removed from a text.

    by form     API keys, bearer tokens, sessions, passwords in addresses, values named `password=`, `api_key=`
    by value    secrets that this process was given (`conceal`), and environment variables named like secrets

A secret without a recognisable form, such as Redis' password or the judge's key, can only be recognised by its value:
code that receives one must call `conceal`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from .redis_address import masked

MIN_SECRET_LENGTH = 6
"""Characters. Shorter secrets are not redacted by value, because that would also redact ordinary words."""
_MAX_VALUES = 1000
"""How many concealed values are remembered; the oldest is forgotten first."""

_NAMED = r"(?:password|api[-_]?key|secret|auth_token|access_token)"
"""Names whose values are redacted: up to the closing quote where the value is quoted, else up to the next space."""

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
    """Redact `secret` from this process' logs from now on, also in its URL-quoted and unquoted forms."""
    for value in () if secret is None else (secret, unquote(secret), quote(secret, safe="")):
        if len(value) >= MIN_SECRET_LENGTH:
            _values[value] = None
    while len(_values) > _MAX_VALUES:
        del _values[next(iter(_values))]


def conceal_password(url: str) -> None:
    """Conceal the password in `url`, if there is one."""
    try:
        conceal(urlsplit(url).password)
    except ValueError:  # not a URL: the code that connects to it reports that
        return


def conceal_environment(environment: Mapping[str, str]) -> None:
    """Conceal the variables named like keys, tokens, passwords or secrets, and those rewards may send
    (`REWARD_ENDPOINT_…`)."""
    for name, value in environment.items():
        if _NAMES_A_SECRET.search(name):
            conceal(value)


def redacted(text: str) -> str:
    """`text` with every known secret replaced by `***`."""
    for value in sorted(_values, key=len, reverse=True):  # longest first: a secret may contain another
        text = text.replace(value, "***")
    for pattern, shown in _FORMS:
        text = pattern.sub(shown, text)
    return masked(text)


conceal_environment(os.environ)
