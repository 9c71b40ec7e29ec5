"""What scripts/logs and scripts/trace are made of: reading the logs of all services."""
