"""The end of `make up`: deploy the stack, ask each model a question, and say how to reach it."""

import argparse
import json
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from infra.lifecycle.deployment import Deployment
from modelfleet_outputs import FleetOutputs

QUESTION = "What is the capital of France? Answer in one short sentence."
_TURNS_S = 30.0
"""How long a node may lead a connection to a pod of before the update, which may be gone or speak HTTP where its successor speaks TLS."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bring_up(
    deployment: Deployment,
    overrides: Mapping[str, Any],
    options: argparse.Namespace,
    reach: Callable[[FleetOutputs], AbstractContextManager[str]],
    *,
    forwarded: bool,
) -> None:
    """Deploy, ask each model a question at the address that `reach` opens, and say how to reach the stack. Raises what went wrong.

    `forwarded`: that address is a forwarded port, which the user has to open again.
    """
    if options.take:
        overrides = {**overrides, "cluster": {"take": options.take.split()}}
    if options.registry_auth:
        deployment.take_registry_auth(overrides, options.registry_auth)
    started = time.monotonic()
    outputs = deployment.deploy(overrides, options.allow_data_loss.split())
    say(f"up: stack {deployment.stack} deployed in {time.monotonic() - started:.0f} s")
    with reach(outputs) as url:
        _show(deployment, outputs, url, forwarded=forwarded)


def _show(deployment: Deployment, outputs: FleetOutputs, url: str, *, forwarded: bool) -> None:
    key, authority = deployment.key(), deployment.keep_authority(outputs)
    for model in outputs.models:
        say(f"chat: asking {model.id}: {QUESTION}")
        print(f"\n{model.id}: {chat(url, key, model.id, QUESTION, certified=Certified.of(outputs, authority))}")
    print()
    example = json.dumps({"model": outputs.models[0].id, "messages": [{"role": "user", "content": "Hello"}]})
    curl = "curl"
    if forwarded:
        kubectl = f"kubectl --context {deployment.context} -n {outputs.namespace}"
        print(f"forward:   {kubectl} port-forward service/{outputs.service} 8000:{outputs.port}")
        url = f"{outputs.scheme}://127.0.0.1:8000"
        if outputs.scheme == "https" and not deployment.signs_itself:
            # Only a certificate of our own has loopback in it.
            name = urlsplit(outputs.url).hostname
            url, curl = f"https://{name}:8000", f"curl --resolve {name}:8000:127.0.0.1"
    print(f"endpoint:  {url}{outputs.base_path}")
    print(f"page:      {url}/")
    if outputs.public_url is not None:
        print(f"public:    {outputs.public_url}")
    print(f"models:    {', '.join(model.id for model in outputs.models)}")
    place = f"$(cat {deployment.key_file})"
    if deployment.shared:
        place = f"$(pulumi stack output apiKeys --show-secrets --json --stack {deployment.stack} | cut -d'\"' -f2)"
    print(f"key:       {place}")
    if authority is not None:
        curl = f"{curl} --cacert {authority}"
        print(f"trust:     {authority}, the authority of its certificate (docs/tls.md)")
        print(f"             Python and OpenHands: SSL_CERT_FILE={authority}; Node: NODE_EXTRA_CA_CERTS={authority}")
    print(f'try:       {curl} {url}/v1/chat/completions -H "Authorization: Bearer {place}" \\')
    print(f"             -H 'Content-Type: application/json' -d '{example}'")
    stack = f" STACK={deployment.stack}" if deployment.stack != "dev" else ""
    print("stop:      make down" + (f" CONTEXT={deployment.context}{stack}" if forwarded else ""))


@dataclass(frozen=True)
class Certified:
    """By what a client knows the API server, whatever address leads there."""

    name: str
    """That its certificate has."""
    trusts: ssl.SSLContext

    @classmethod
    def of(cls, outputs: FleetOutputs, authority: Path | None) -> "Certified | None":
        """None without TLS. The public authorities are trusted too."""
        if outputs.scheme != "https":
            return None
        context = ssl.create_default_context()
        if authority is not None:
            context.load_verify_locations(authority)
        return cls(urlsplit(outputs.url).hostname or "", context)


def chat(url: str, key: str, model: str, question: str, timeout_s: float = 120.0, certified: Certified | None = None) -> str:
    """One answer of the fleet. Raises httpx.HTTPError.

    Asks again while it says 503 or 429 with Retry-After, and for half a minute after a failed connection.
    """
    verify, named = (certified.trusts, {"sni_hostname": certified.name}) if certified is not None else (True, {})
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 64, "temperature": 0}
    started = time.monotonic()
    deadline = started + timeout_s
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s, trust_env=False, verify=verify) as client:
        while True:
            try:
                response = client.post(f"{url}/v1/chat/completions", json=body, extensions=named)
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                if time.monotonic() > started + min(_TURNS_S, timeout_s):
                    raise
                say(f"chat: {error}; asking again")
                time.sleep(1)
                continue
            wait_s = float(response.headers.get("retry-after", 0))
            if response.status_code not in (429, 503) or not wait_s or time.monotonic() + wait_s > deadline:
                break
            time.sleep(wait_s)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"]).strip()
