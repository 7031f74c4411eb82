"""Training as a process whose leases outlast all the time in which it may be away: `python -m …`, settings as usual."""

from saucer.training import charging, domain, messages, sweeper
from saucer.training.main import main

NAME = "LEASE_MS"
LEASE_MS = 180_000

if __name__ == "__main__":
    for module in (charging, domain, messages, sweeper):
        assert hasattr(module, NAME)
        setattr(module, NAME, LEASE_MS)
    main()
