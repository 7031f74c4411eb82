"""Dataset: immutable versions of labelled images, and the uploads, imports and drafts that make them.

Owns: account stores, uploads, imports, dataset versions, drafts, mapped roots (database `dataset`); images, manifests
    and uploads in the object store.
Serves: saucer.dataset.v1.DatasetService, saucer.lib.v1.DeadEventService, saucer.lib.v1.CallService.
Calls: nobody but the object store.
Publishes: AccountStoreProven, ImportEnded, DatasetVersionCreated, DraftCreated, DraftChanged, DraftDeleted.
Consumes: AccountCreated, AccountQuotasChanged.
"""
