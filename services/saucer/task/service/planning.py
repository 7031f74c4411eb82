"""What a start would be: checked against data, scene and spec, with what the form leaves open derived, and a quote."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from saucer.lib import deleted_models
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from saucer.lib.postgres import Database
from saucer.task import predicting, store
from saucer.task.defaults import Data, Derived, derive
from saucer.task.domain import Config, Form, KnownModel, Refused, TaskKind
from saucer.task.estimating import LOOKED_AT, estimate_ms
from saucer.task.peers import Peers, Quote
from saucer.task.scenes import Scene


@dataclass(frozen=True)
class Plan:
    """What a form comes to."""

    config: Config
    derived: tuple[Derived, ...]
    quote: Quote
    data: Data


class Planning:
    """Asks dataset and billing, and stores nothing."""

    def __init__(self, database: Database, peers: Peers, scenes: Mapping[str, Scene], *, fetches_weights: bool) -> None:
        self._database = database
        self._peers = peers
        self._scenes = scenes
        self._fetches_weights = fetches_weights

    async def plan(self, account_id: str, form: Form) -> Plan:
        """Checks a form against scene, model, data and spec, and derives what it leaves open.

        Raises:
            InvalidArgumentError: scene, data or count do not fit. NotFoundError: data, model or spec.
            FailedPreconditionError: MODEL_DELETED. UnavailableError: dataset or billing did not answer.
        """
        scene = self._scenes.get(form.scene)
        if scene is None:
            raise InvalidArgumentError(
                "SCENE_UNKNOWN", f"scene: there is no {form.scene}; there are {', '.join(self._scenes)}."
            )
        check_billing(form)
        model = await self._model_of(account_id, form)
        base = await self._own_model(account_id, form.base_model_id) if form.base_model_id else None
        owner, data = await self._peers.data(form.dataset_version_id)
        if owner != account_id:
            raise NotFoundError("dataset_version", form.dataset_version_id)
        quote = await self._peers.quote(account_id, form)
        if form.prepaid:
            quote = replace(quote, price_per_hour_micros=0, hold_micros=0, missing_micros=0)
        try:
            config, derived = (
                predicting.configure(form, model, self._scenes.get(model.scene), data)
                if model
                else derive(form, scene, data, quote.machine, base, fetches=self._fetches_weights)
            )
        except Refused as refused:
            raise InvalidArgumentError(refused.reason, refused.message) from refused
        return Plan(config, derived, quote, data)

    async def _model_of(self, account_id: str, form: Form) -> KnownModel | None:
        """Of a predict task. Raises NotFoundError, InvalidArgumentError if form and kind do not fit."""
        predicts = form.kind is TaskKind.PREDICT
        if predicts != bool(form.model_id):
            raise InvalidArgumentError("MODEL_UNSUITABLE", "model_id: a predict task names a model, and no other does.")
        return await self._own_model(account_id, form.model_id) if predicts else None

    async def _own_model(self, account_id: str, model_id: str) -> KnownModel:
        """Raises NotFoundError; FailedPreconditionError: MODEL_DELETED."""
        async with self._database.reading() as connection:
            model = await store.get_model(connection, model_id)
            deleted = await deleted_models.is_deleted(connection, model_id)
        if model is None or model.account_id != account_id:
            raise NotFoundError("model", model_id)
        if deleted:
            raise model_deleted(model_id)
        return model

    async def quote(self, account_id: str, form: Form) -> tuple[Plan, int]:
        """What it would cost, and how long it would take in ms. Raises as plan() does."""
        plan = await self.plan(account_id, form)
        async with self._database.reading() as connection:
            paces = await store.paces(
                connection, form.region_id, form.spec_id, form.count, LOOKED_AT, predicts=bool(plan.config.model_id)
            )
        return plan, estimate_ms(form, plan.config, plan.data, plan.quote.machine, paces)


def check_billing(form: Form) -> None:
    """Raises InvalidArgumentError if billing mode and resource group do not fit."""
    if form.prepaid and not form.resource_group_id:
        raise InvalidArgumentError("RESOURCE_GROUP_REQUIRED", "resource_group_id: PREPAID takes capacity of one.")
    if form.resource_group_id and not form.prepaid:
        raise InvalidArgumentError("RESOURCE_GROUP_UNEXPECTED", "resource_group_id: only PREPAID takes one.")


def model_deleted(model_id: str) -> FailedPreconditionError:
    """The refusal of what would begin with a deleted model."""
    return FailedPreconditionError(
        "MODEL_DELETED", f"The model {model_id} was deleted; choose another one.", model_id=model_id
    )
