"""What a key may be called, and how far it reaches: for the gateway, and for commands that begin without loading it."""

from typing import Literal

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
Scope = Literal["user", "admin"]
