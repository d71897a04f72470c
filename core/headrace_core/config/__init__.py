"""Settings: of a job (users), of the service and of reward code (operators)."""
