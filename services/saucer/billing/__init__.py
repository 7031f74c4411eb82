"""Billing: accounts, prices, holds and the ledger. The only place where money is.

Owns: accounts, regions, specs, prices, resource groups, budgets, quotas, holds, transfers and their entries, records
    of what administrators did (database `billing`).
Serves: saucer.billing.v1.BillingService, saucer.lib.v1.DeadEventService, saucer.lib.v1.CallService.
Calls: nobody.
Publishes: AccountCreated, AccountToppedUp, AccountCorrected, AccountQuotasChanged, HoldGranted, ChargeSettled,
    FundsLow, FundsShort, StopOrdered, HoldResolved, GroupCreated, GroupUpdated, GroupEnding, GroupEnded.
Consumes: TaskQueued, TaskEnded; RunStarted, RunProgressed, RunInterrupted, RunEnded;
    DeploymentQueued, DeploymentActivated, DeploymentProgressed, DeploymentDegraded, DeploymentEnded.
"""
