"""Whatever a request says, the service answers as its OpenAPI document promises, and never with 500."""

from __future__ import annotations

import hypothesis
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from .service import TOKEN

# A request that the document allows may be refused all the same: what arguments an entrypoint takes, only it knows.
KNOWN_ONLY_THERE = [positive_data_acceptance]


def test_no_request_of_any_shape_is_answered_with_an_error_of_the_server(server, finished):
    schema = schemathesis.openapi.from_url(server.url.replace("/api", "/openapi.json"))
    headers = {"authorization": f"Bearer {TOKEN}"}
    names = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        names.add(operation.label)

        @hypothesis.settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(
                headers=headers, base_url=server.url.removesuffix("/api"), excluded_checks=KNOWN_ONLY_THERE
            )

        check()
    assert len(names) == 12
