"""Upper limits of a job's numbers, which keep what is computed from them in range."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

WholeNumber = Annotated[int, Field(le=10**9)]

MAX_FLOAT = 1e9
"""Upper limit of settings that have no effect where they are large. Larger values would take what is computed from them
out of the range of float32."""
