"""What every section of the configuration is made of: the base model, and the types of its values."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

PROJECT = "modelfleet"
MIB, GIB = 2**20, 2**30
_UNITS = {
    **{"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18},
    **{"Ki": 2**10, "Mi": MIB, "Gi": GIB, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60},
}
_QUANTITY = r"(\+?(?:[0-9]{1,18}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))(?:([eE][+-]?[0-9]{1,3})|([numkMGTPE]|[KMGTPE]i))?"
"""Kubernetes' own grammar (apimachinery, pkg/api/resource/quantity.go), without negative numbers: nothing here has a size below zero."""
_LARGEST = 2**63
"""Kubernetes keeps quantities in 64 bits."""


class SettingsError(Exception):
    """Every problem of the configuration, one a line, in the form `<path>: got X, want Y; do Z`."""


def quantity(text: str) -> float:
    """The value of a Kubernetes quantity such as `100m`, `2Gi` or `1e3`. Raises ValueError on anything else."""
    match = re.fullmatch(_QUANTITY, text, re.ASCII)
    value = float(match[1] + (match[2] or "")) * _UNITS[match[3] or ""] if match else _LARGEST
    if value >= _LARGEST:
        raise ValueError("want a Kubernetes quantity such as 500m, 2 or 4Gi; write it as a string")
    return value


def in_gib(size: float) -> str:
    """For people: a number of bytes as `12.5Gi`; one that would be `0.0Gi` as `2.2Mi`."""
    return f"{size / 2**20:.1f}Mi" if 0 < size < 0.05 * GIB else f"{size / GIB:.1f}Gi"


def covers_the_internet(cidrs: Iterable[str]) -> bool:
    """Whether the networks together have a 16th of all addresses of a family: no private network has, and IPv6's public ones are an 8th."""
    networks = [ipaddress.ip_network(each) for each in cidrs]
    v4 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network))
    return sum(each.num_addresses for each in v4) >= 2**28 or sum(each.num_addresses for each in v6) >= 2**124


def _cores(text: str) -> str:
    if quantity(text) < 1e-3:
        raise ValueError("want at least 1m, a thousandth of a core; raise it")
    return text


def _bytes(text: str) -> str:
    # Far below every real size here, it is a forgotten unit: `memory: "64"` would be 64 bytes.
    if quantity(text) < MIB:
        raise ValueError("want at least 1Mi; add a unit such as Mi or Gi")
    return text


def _network(text: str) -> str:
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        found = None
    # Kubernetes takes neither a scope, nor an IPv4 address in the clothes of IPv6.
    if found is None or "%" in text or (isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None):
        raise ValueError("want a network such as 10.0.0.0/8 or fd00::/8, without host bits; correct it")
    return str(found)


_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{_QUANTITY}$"})
Cores = Annotated[str, AfterValidator(_cores), _SCHEMA]
Bytes = Annotated[str, AfterValidator(_bytes), _SCHEMA]
Cidr = Annotated[str, AfterValidator(_network)]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"
Labels = dict[Annotated[str, Field(pattern=LABEL_KEY)], Annotated[str, Field(pattern=LABEL_VALUE)]]
Annotations = dict[Annotated[str, Field(pattern=LABEL_KEY)], str]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]{0,199}:[A-Za-z0-9._-]{1,80}$")]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Speed(Section):
    """Of one server, as it was measured; docs/models.md says how."""

    read: float = Field(gt=0, le=1_000_000)
    """Tokens of new prompts that one server reads a second. `speed` may be left out; it has both numbers, or none."""
    write: float = Field(gt=0, le=1_000_000)
    """Tokens a second of each answer while all of a server's slots are at work."""


class Resources(Section):
    cpu: Cores
    """CPU request in cores; no limit, because a throttled server is slower than a busy one."""
    memory: Bytes
    """Memory request and limit."""
