"""The section `network`: what the cluster's own services look like to network policies, and which pods are clients."""

from typing import Self

from pydantic import Field, model_validator

from infra.program.settings.section import Cidr, DnsLabel, Labels, Section


class DnsSettings(Section):
    """Where names are looked up."""

    namespace: DnsLabel = "kube-system"
    """Namespace of the DNS pods; openshift-dns on OpenShift."""
    pod_labels: Labels = Field(default={"k8s-app": "kube-dns"})
    """Labels of the DNS pods: dns.operator.openshift.io/daemonset-dns: default on OpenShift."""
    port: int = Field(default=53, ge=1, le=65535)
    """Port of the DNS pods themselves, beside 53; 5353 on OpenShift."""
    cidrs: list[Cidr] = Field(default=[])
    """Addresses that answer on the nodes, such as 169.254.20.10/32 with NodeLocal DNSCache."""


class PodsSettings(Section):
    """Pods of another namespace."""

    namespace: DnsLabel
    """Their namespace."""
    labels: Labels = Field(default={})
    """Their labels; without any, every pod of the namespace."""


class NetworkSettings(Section):
    dns: DnsSettings = DnsSettings()
    """Where pods look names up."""
    clients: list[PodsSettings] = Field(default=[])
    """Pods that may connect to the API server, beside the addresses of apiServer.clientCidrs."""

    @model_validator(mode="after")
    def _names_each_client_once(self) -> Self:
        if len(self.clients) != len({each.model_dump_json() for each in self.clients}):
            raise ValueError("clients: got the same pods twice, want each once; remove one")
        return self
