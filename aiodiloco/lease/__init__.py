"""The driver's lease on a run: how everyone else knows, from the store alone, that it is alive."""

from aiodiloco.lease.document import LeaseDocument, LeaseState, LeaseTerms, lease_key, read_lease, read_terms
from aiodiloco.lease.holder import LeaseHolder, Report
from aiodiloco.lease.watch import Vacancy, watch_lease

__all__ = [
    "LeaseDocument",
    "LeaseHolder",
    "LeaseState",
    "LeaseTerms",
    "Report",
    "Vacancy",
    "lease_key",
    "read_lease",
    "read_terms",
    "watch_lease",
]
