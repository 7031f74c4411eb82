"""The use cases of dataset, by what they are about, and the only place that opens its transactions.

Locks are taken in one order, import before account store before upload or draft, so that no two transactions wait for
each other. Object-store calls are made between transactions, never inside one.
"""

from datetime import timedelta

from saucer.dataset.domain import UPLOAD_KEPT
from saucer.dataset.service.imports import Imports
from saucer.dataset.service.labelling import Labelling
from saucer.dataset.service.leftovers import Leftovers
from saucer.dataset.service.roots import Roots
from saucer.dataset.service.stores import Stores
from saucer.dataset.service.uploads import Uploads
from saucer.dataset.service.versions import Versions
from saucer.lib.objects import Objects
from saucer.lib.postgres import Database


class Datasets:
    """Images and labels, from an upload to a version."""

    def __init__(
        self, database: Database, objects: Objects, *, claim: timedelta, uploads_keep: timedelta = UPLOAD_KEPT
    ) -> None:
        """`claim` is how long an import stays with a process that does not prolong it, `uploads_keep` how long an
        upload stays to which no chunk comes."""
        self.stores = Stores(database, objects)
        self.uploads = Uploads(database, objects, keep=uploads_keep)
        self.imports = Imports(database, claim=claim)
        self.versions = Versions(database)
        self.labelling = Labelling(database, objects)
        self.roots = Roots(database)
        self.leftovers = Leftovers(database, objects)
