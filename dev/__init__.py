"""For developers and newcomers: servers out of wheels, demo members, `make run`. Not part of the service."""
