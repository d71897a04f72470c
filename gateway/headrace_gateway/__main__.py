"""`python -m headrace_gateway` is `headrace`, in an environment whose scripts are not on the path."""

from .cli.main import main

main()
