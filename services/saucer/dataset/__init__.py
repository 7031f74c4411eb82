"""Dataset: immutable versions of labelled images, and the uploads, imports and drafts that make them.

Owns: account stores, uploads, imports, dataset versions, drafts (database `dataset`); images, manifests and uploads
    in the object store.
Serves: saucer.dataset.v1.DatasetService, saucer.lib.v1.DeadEventService.
Calls: nobody but the object store.
Publishes: AccountStoreProven, ImportEnded, DatasetVersionCreated.
Consumes: AccountCreated, AccountQuotasChanged.
"""
