"""Names and scopes of API keys. A module of its own, so that commands can use it without importing the gateway."""

from typing import Literal

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
Scope = Literal["user", "admin"]
