"""The checks of `headrace doctor`: the machine, the services, and the records in Redis."""
