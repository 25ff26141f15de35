"""What operators read of a running service: log lines and metrics."""
