"""Every error a user or another part can meet, in one small tree.

    HeadraceError                 code, message, param
    ├── InvalidRequest            the caller can mend it (HTTP 400); says how
    │   ├── InvalidData           a data file is wrong; names file and line
    │   ├── TooLarge              a body or a file is beyond its limit (HTTP 413)
    │   └── InvalidState          the thing exists, but not in a state that allows this
    │       └── Damaged           what is kept of it cannot be read; names where it is, and the remedy
    ├── NotAuthenticated          no key, or none that is valid (HTTP 401)
    ├── Forbidden                 a key that does not reach so far (HTTP 403)
    ├── NotFound                  no such job, file, checkpoint, group (HTTP 404)
    ├── RateLimited               too many requests; the answer says when to come again (HTTP 429)
    ├── Unavailable               a part that is needed does not answer (HTTP 503)
    │   ├── TimedOut              a wait reached its limit; names what it waited for
    │   ├── RedisFull             Redis takes no more, and did not for as long as it is waited for
    │   └── DiskFull              a disk takes no more; names the folder and the bytes that are needed
    ├── WeightsDamaged            a published version is incomplete or fails its checksum
    └── WireError                 bytes that are not a trajectory group of a known version

A lost race (a lease that another worker took over, say) is a normal outcome with a name, not an error: see `ledger`.
"""

from __future__ import annotations

MOST_TOLD = 4000
"""Characters of a text that is not ours, in a message of ours."""


def shortened(told: str) -> str:
    """The beginning and the end of a text of any length, such as one that a user's program raises."""
    half = MOST_TOLD // 2
    return told if len(told) <= MOST_TOLD else f"{told[:half]} … {told[-half:]}"


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
"""Code of a failure whose reason is its own error: nothing was killed, and no other part was away."""


class InvalidRequest(HeadraceError):
    """The caller sent something that cannot be done; the message says what to change."""

    code = "invalid_request"


class InvalidData(InvalidRequest):
    """A data file is wrong; the message names the line."""

    code = "invalid_data"


class TooLarge(InvalidRequest):
    """A body or a file is beyond its limit; the message names the limit."""

    code = "too_large"


class InvalidState(InvalidRequest):
    """The thing exists, but its state does not allow the action."""

    code = "invalid_state"


class Damaged(InvalidState):
    """A record or a file that is read back is not what was written; the message names it, and what to do.

    Of the caller's errors, because their request is answered, and another try would be answered alike.
    """

    code = "damaged"


class NotAuthenticated(HeadraceError):
    """The request carries no key, or none that is valid."""

    code = "invalid_api_key"


class Forbidden(HeadraceError):
    """The caller is known, and may not do this."""

    code = "forbidden"


class NotFound(HeadraceError):
    """There is no such thing."""

    code = "not_found"


class RateLimited(HeadraceError):
    """The caller's requests came faster than they are taken."""

    code = "rate_limit_exceeded"


class Unavailable(HeadraceError):
    """A part that is needed does not answer, or is busy; `retry_after`: seconds until it may no longer be."""

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
    """Redis is at its memory limit, and was for as long as it is waited for. A job pauses."""

    code = "redis_full"


class DiskFull(Unavailable):
    """There is no room where something was to be written; the message names the folder and the bytes that are needed. A
    job pauses."""

    code = "disk_full"


class WeightsDamaged(HeadraceError):
    """A published policy version is incomplete, or its bytes are not those of its manifest."""

    code = "weights_damaged"


class WireError(HeadraceError):
    """Bytes that are not a trajectory group of a known wire version."""

    code = "wire_error"
