"""The exceptions that users and other services can meet, as one tree.

    HeadraceError                 code, message, param
    ├── InvalidRequest            the caller can correct it (HTTP 400); the message says how
    │   ├── InvalidData           a data file is wrong; names file and line
    │   ├── TooLarge              a body or a file is beyond its limit (HTTP 413)
    │   └── InvalidState          the object exists, but its state does not allow the action
    │       └── Damaged           its stored record cannot be read; names the place and the remedy
    ├── NotAuthenticated          no API key, or an invalid one (HTTP 401)
    ├── Forbidden                 the key does not permit this (HTTP 403)
    ├── NotFound                  no such job, file, checkpoint, group (HTTP 404)
    ├── RateLimited               too many requests; the response says when to retry (HTTP 429)
    ├── Unavailable               a required component does not answer (HTTP 503)
    │   ├── TimedOut              a wait reached its limit; names what it waited for
    │   ├── RedisFull             Redis stayed at its memory limit for as long as clients wait
    │   └── DiskFull              a disk is full; names the folder and the bytes needed
    ├── WeightsDamaged            a published version is incomplete or fails its checksum
    └── WireError                 bytes that are not a trajectory group of a known version

A lost race (for example a lease that another worker took over) is a normal outcome, not an error: see
`ledger.TransitionOutcome`.
"""

from __future__ import annotations

MAX_QUOTED_TEXT = 4000
"""Characters of a foreign text (a user program's error, say) that an error message quotes."""


def shortened(text: str) -> str:
    """`text`, or its beginning and end where it is longer than `MAX_QUOTED_TEXT` characters."""
    half = MAX_QUOTED_TEXT // 2
    return text if len(text) <= MAX_QUOTED_TEXT else f"{text[:half]} … {text[-half:]}"


class HeadraceError(Exception):
    """Base of all. `code` is stable and machine-readable; `param` names the offending field where there is one."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


FAILED_BY_ITSELF = "failed_by_itself"
"""Error code of a failure that its own error explains: no process was killed, no other component was unavailable."""


class InvalidRequest(HeadraceError):
    """The request cannot be carried out as it is; the message says what to change."""

    code = "invalid_request"


class InvalidData(InvalidRequest):
    """A data file is wrong; the message names the line."""

    code = "invalid_data"


class TooLarge(InvalidRequest):
    """A body or a file is beyond its limit; the message names the limit."""

    code = "too_large"


class InvalidState(InvalidRequest):
    """The object exists, but its state does not allow the action."""

    code = "invalid_state"


class Damaged(InvalidState):
    """A stored record or file cannot be read; the message names it and says what to do.

    It counts among the caller's errors (HTTP 4xx), because a retry would get the same answer.
    """

    code = "damaged"


class NotAuthenticated(HeadraceError):
    """The request carries no API key, or an invalid one."""

    code = "invalid_api_key"


class Forbidden(HeadraceError):
    """The caller is authenticated, but not permitted to do this."""

    code = "forbidden"


class NotFound(HeadraceError):
    """The requested object does not exist."""

    code = "not_found"


class RateLimited(HeadraceError):
    """The caller exceeded its requests per minute."""

    code = "rate_limit_exceeded"


class Unavailable(HeadraceError):
    """A required component does not answer, or is busy. `retry_after`: seconds after which a retry may succeed."""

    code = "unavailable"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class TimedOut(Unavailable):
    """A wait reached its limit; the message names what was waited for, and how long."""

    code = "timed_out"


class RedisFull(Unavailable):
    """Redis stayed at its memory limit for as long as the client waits. A job that meets it pauses."""

    code = "redis_full"


class DiskFull(Unavailable):
    """A folder has no free space for a write; the message names the folder and the bytes needed. A job that meets it
    pauses."""

    code = "disk_full"


class WeightsDamaged(HeadraceError):
    """A published policy version is incomplete, or its bytes are not those of its manifest."""

    code = "weights_damaged"


class WireError(HeadraceError):
    """Bytes that are not a trajectory group of a known wire version."""

    code = "wire_error"
