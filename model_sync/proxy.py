"""The forward proxy that leads out of a company's network: who is asked through it."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_INSIDE = (".localhost", ".svc", ".cluster.local")
"""Ends of names that the machine or the cluster itself resolves."""


@dataclass(frozen=True)
class Proxy:
    """HTTP without TLS of its own; what is asked of an https source is hidden from it."""

    url: str
    """http://HOST:PORT."""
    not_for: Sequence[str] = ()
    """Names that are asked without it, each with all names below it."""

    @property
    def server(self) -> str:
        """HOST:PORT, as its credential is called."""
        return urlsplit(self.url).netloc.lower()

    @property
    def origin(self) -> tuple[str, int]:
        """Host and port that are connected to."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    def via(self, url: str) -> str:
        """For messages: ` through the proxy …`; empty where the server is asked without it. Raises ValueError on no address."""
        return f" through the proxy {self.server}" if self.leads_to(urlsplit(url).hostname or "") else ""

    def leads_to(self, host: str) -> bool:
        """Whether it is asked for this host: not for an address, nor for what is in this pod or cluster."""
        name = host.lower().rstrip(".")
        if _is_address(name) or "." not in name or name.endswith(_INSIDE):
            return False
        return not any(f".{name}".endswith(f".{each.strip('.')}") for each in self.not_for)

    def refusal(self, status: int | None, target: str, *, known: bool) -> str | None:
        """What a person has to know of it; None where another attempt may help. `known`: whether it was told who we are."""
        do = {
            407: "renew its credential in modelfleet:sourceTokens" if known else f"set modelfleet:sourceTokens for {self.server}",
            403: "ask who runs the proxy, or reach that server without it (delivery.noProxy)",
        }
        return f"got {status} from the proxy {self.server}, want a way to {target}; {do[status]}" if status in do else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
