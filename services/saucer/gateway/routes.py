"""google.api.http rules as routes: which method a path and verb call, and what the path says.

Templates are those of google/api/http.proto: `*`, `**`, `{field}`, `{field=a/*}` and `:verb`. A variable of one segment
takes no colon, so that `/v1/tasks/1:stop` is never a task named `1:stop`; a colon of a value's own is sent as %3A.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped] # googleapis-common-protos has no types
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

_VARIABLE = re.compile(r"\{([a-z0-9_.]+)(?:=([^}]+))?\}")


@dataclass(frozen=True)
class Route:
    """One binding of one method."""

    verb: str
    template: str
    pattern: re.Pattern[str]
    # Field paths, in the order of the pattern's groups.
    fields: tuple[str, ...]
    # "*": the whole request; "": none; else the field that the body is.
    body: str
    method: MethodDescriptor
    # Which service of the platform serves it.
    service: str

    @property
    def grpc_path(self) -> str:
        """As gRPC names it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


@dataclass(frozen=True)
class Match:
    """A route with what the path says."""

    route: Route
    # Text by field path, decoded.
    values: Mapping[str, str]


def routes_of(services: Mapping[str, Sequence[ServiceDescriptor]]) -> list[Route]:
    """Every binding of every method that has one.

    A contract that several services serve (DeadEventService) is routed once for each, under the service's name:
    `/v1/deadEvents` becomes `/v1/billing/deadEvents`.

    Args:
        services: the contracts by the name of the service that serves them.

    Raises:
        ValueError: two methods claim one path, a rule names a field that the request lacks, or uses what is not
            supported here (custom verbs, response_body).
    """
    serving: dict[str, list[str]] = {}
    for name, contracts in services.items():
        for contract in contracts:
            serving.setdefault(contract.full_name, []).append(name)
    routes = [
        route
        for name, contracts in services.items()
        for contract in contracts
        for method in contract.methods
        for route in _bindings(method, name, shared=len(serving[contract.full_name]) > 1)
    ]
    claimed: dict[tuple[str, str], Route] = {}
    for route in routes:
        former = claimed.setdefault((route.verb, route.pattern.pattern), route)
        if former is not route:
            raise ValueError(f"{former.method.full_name} and {route.method.full_name} both claim {route.template}.")
    return routes


def find(routes: Sequence[Route], verb: str, raw_path: str) -> Match | frozenset[str]:
    """The route of a path as it was sent (percent-encoded), or else the verbs that it would take: none, if unknown."""
    verbs = set()
    for route in routes:
        matched = route.pattern.fullmatch(raw_path)
        if matched is not None:
            if route.verb == verb:
                return Match(route, dict(zip(route.fields, map(unquote, matched.groups()), strict=True)))
            verbs.add(route.verb)
    return frozenset(verbs)


def _bindings(method: MethodDescriptor, service: str, *, shared: bool) -> Iterator[Route]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    rule: http_pb2.HttpRule = options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        verb = binding.WhichOneof("pattern")
        if verb in {None, "custom"} or binding.response_body:
            raise ValueError(f"{method.full_name}: custom verbs and response_body are not supported.")
        template: str = getattr(binding, verb)
        if shared:
            version, _, rest = template.removeprefix("/").partition("/")
            template = f"/{version}/{service}/{rest}"
        pattern, fields = compile_template(template)
        for path in (*fields, *([binding.body] if binding.body not in {"", "*"} else [])):
            _check_field(method, path)
        yield Route(verb.upper(), template, pattern, fields, binding.body, method, service)


def _check_field(method: MethodDescriptor, path: str) -> None:
    message: Descriptor | None = method.input_type
    for name in path.split("."):
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            raise ValueError(f"{method.full_name}: its request has no field {path}.")
        message = field.message_type


def compile_template(template: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """A pattern over percent-encoded paths, and the fields that its groups hold."""
    pattern, fields, position = "", [], 0
    for variable in _VARIABLE.finditer(template):
        pattern += _segments(template[position : variable.start()])
        fields.append(variable[1])
        pattern += f"({_segments(variable[2] or '*')})"
        position = variable.end()
    return re.compile(pattern + _segments(template[position:])), tuple(fields)


def _segments(text: str) -> str:
    parts = re.split(r"(\*\*|\*)", text)
    return "".join({"*": "[^/:]+", "**": "[^:]*"}.get(part, re.escape(part)) for part in parts)
