"""Speed, cost and punctuality, measured on real processes: `make bench`, `make bench-quick REV=…`."""
