"""Asks a running server whatever its OpenAPI document allows, and what it does not, and holds the
answers to the document: no status, content type or body that it does not describe, and no error of
the server's own.

    python generated.py URL CASES SEED

The document is made by the server, and every route is under one of its names here: the others are
the same rows of the route table.
"""

import collections
import sys
import time

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]

# Other names of routes, the one that ends the server, and those that only say that they do nothing.
LEFT_OUT = ("/api/v1/", "/v0/", "/api/v0/", "/v1/halt",
            "/api/create", "/api/copy", "/api/push", "/api/blobs/")

# Routes that have nothing to answer with here: nothing is in the store, and it is offline.
NEVER_WELL = ("/pull", "/delete")

# What is there, by the names that paths have for it.
THERE = {"id": "tiny", "file": "style.css"}

# Values with which most requests are completed, so that they get past the first check: a model that
# is there, an answer that is soon complete.
ANSWERED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hi"}]},
    "/api/chat": {"options": {"num_predict": 2}},
    "/api/generate": {"options": {"num_predict": 2}},
    "/api/embed": {"input": "Hi"},
    "/api/embeddings": {"prompt": "Hi"},
    "/api/show": {},
    "/v1/load": {"model_name": "tiny"},
    "/v1/tokenize": {"content": "Hi"},
    "/v1/detokenize": {"tokens": [72, 105]},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [72, 105]},
}


def completed(body, path, draw):
    """A body with a model that is there, and now and then with all that an answer needs."""
    if not isinstance(body, dict) or path not in ANSWERED:
        return body
    sound = draw(strategies.sampled_from(["as it is", "completed", "whole", "few"]))
    if sound == "as it is":
        return body
    body = dict(body)
    if sound == "few":
        kept = draw(strategies.lists(strategies.sampled_from(sorted(body) or [""]), max_size=2))
        body = {name: body[name] for name in kept if name in body}
    for name in ("model", "model_name", "checkpoint"):
        if name in body:
            body[name] = "tiny"
    if sound == "completed":
        return {**ANSWERED[path], **body}
    return {**body, **ANSWERED[path]}


def cases(operation):
    """Requests that the document allows, and as many that it does not."""
    modes = [GenerationMode.POSITIVE]
    if operation.body or operation.path_parameters:
        modes.append(GenerationMode.NEGATIVE)
    made = strategies.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

    @strategies.composite
    def of_operation(draw):
        case = draw(made)
        case.body = completed(case.body, operation.path, draw)
        if case.path_parameters and draw(strategies.booleans()):
            case.path_parameters = {name: THERE[name] for name in case.path_parameters}
        return case

    return of_operation()


def check(operation, count, seed, statuses, times):
    session = requests.Session()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=cases(operation))
    def holds(case):
        begin = time.time()
        response = case.call(session=session, timeout=60)
        times[operation.label].append(time.time() - begin)
        statuses[operation.label][response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    holds()


def main():
    url, total, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    operations = [one for one in operations if not one.path.startswith(LEFT_OUT)]
    # Without a body there is nothing to vary.
    varied = [one.label for one in operations if one.body or one.path_parameters]
    statuses, failed, begin = collections.defaultdict(collections.Counter), [], time.time()
    times = collections.defaultdict(list)

    def fail(operation, why):
        failed.append(operation)
        print(f"{operation.label}: {why}", flush=True)

    for operation in operations:
        count = 2 if operation.label not in varied else max(2, -(-total // len(varied)))
        try:
            check(operation, count, seed, statuses, times)
        except (Exception, BaseExceptionGroup) as error:  # every route is to be asked
            fail(operation, error)
        found = statuses[operation.label]
        row = ", ".join(f"{status}: {found[status]}" for status in sorted(found))
        slowest = max(times[operation.label], default=0)
        print(f"{operation.label:40} {row} (slowest {slowest:.1f} s)", flush=True)
        if not found[200] and not operation.path.endswith(NEVER_WELL):
            fail(operation, "no request was answered, so nothing was tested")
    asked = sum(sum(found.values()) for found in statuses.values())
    print(f"{asked} requests to {len(operations)} routes in {time.time() - begin:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
