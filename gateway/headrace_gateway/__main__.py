"""`python -m headrace_gateway` equals `headrace`, for environments whose scripts are not on the PATH."""

from .cli.main import main

main()
