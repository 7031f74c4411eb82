"""Billing: accounts, prices, holds and the ledger. The only place where money is.

Owns: accounts, regions, specs, prices, holds, transfers and their entries (database `billing`).
Serves: saucer.billing.v1.BillingService, saucer.lib.v1.DeadEventService.
Calls: nobody.
Publishes: AccountCreated, AccountToppedUp, HoldGranted, ChargeSettled, FundsShort, StopOrdered, HoldResolved.
Consumes: TaskEnded; RunStarted, RunProgressed, RunInterrupted, RunEnded;
    DeploymentActivated, DeploymentProgressed, DeploymentDegraded, DeploymentEnded.
"""
