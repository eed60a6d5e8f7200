"""A door with keys, limits and metrics in front of a model server that a team runs already, made of two of the fleet's components.

Configuration (`pulumi config set door:<key>`):
  image          the API server's image, by digest
  apiKeys        a JSON list of keys for clients, each of 16 or more characters; --secret
  model          what clients ask for, and what the model server calls it
  server         Service of the model server, for example vllm
  serverPort     its port, which is also that of its pods; 8000 when unset
  serverLabels   a JSON object: labels of its pods
  serverNamespace  where they run
  context        context of the kubeconfig; or
  renderTo       absolute directory: write YAML there and talk to no cluster
"""

import pulumi
import pulumi_kubernetes as k8s
from modelfleet_components import ApiServer, ApiServerArgs, Governance, GovernanceArgs, ResourceArgs, RuntimeImages, RuntimeImagesArgs

NAMESPACE = "door"
net = k8s.networking.v1


def policies(namespace: pulumi.Input[str], server: net.NetworkPolicyPeerArgs, port: int, opts: pulumi.ResourceOptions) -> None:
    """Everything is denied but: any client to the door, and the door to DNS and to the model server."""
    match, number = k8s.meta.v1.LabelSelectorArgs, net.NetworkPolicyPortArgs
    net.NetworkPolicy(
        "default-deny",
        metadata=k8s.meta.v1.ObjectMetaArgs(name="default-deny", namespace=namespace),
        spec=net.NetworkPolicySpecArgs(pod_selector=match(), policy_types=["Ingress", "Egress"]),
        opts=opts,
    )
    dns = net.NetworkPolicyPeerArgs(
        namespace_selector=match(match_labels={"kubernetes.io/metadata.name": "kube-system"}),
        pod_selector=match(match_labels={"k8s-app": "kube-dns"}),
    )
    lookups = [number(port=53, protocol="UDP"), number(port=53, protocol="TCP")]
    net.NetworkPolicy(
        "door",
        metadata=k8s.meta.v1.ObjectMetaArgs(name="door", namespace=namespace),
        spec=net.NetworkPolicySpecArgs(
            pod_selector=match(match_labels={"app.kubernetes.io/name": "api-server"}),
            policy_types=["Ingress", "Egress"],
            ingress=[net.NetworkPolicyIngressRuleArgs(ports=[number(port=8000, protocol="TCP")])],
            egress=[
                net.NetworkPolicyEgressRuleArgs(to=[dns], ports=lookups),
                net.NetworkPolicyEgressRuleArgs(to=[server], ports=[number(port=port, protocol="TCP")]),
            ],
        ),
        opts=opts,
    )


def main() -> None:
    config = pulumi.Config("door")
    directory = config.get("renderTo")
    # All of it before any resource: a missing value leaves nothing half made.
    image, keys, model = config.require("image"), config.require_secret_object("apiKeys"), config.require("model")
    server, port, home = config.require("server"), config.get_int("serverPort") or 8000, config.require("serverNamespace")
    pods: dict[str, str] = config.require_object("serverLabels")
    provider = (
        k8s.Provider("cluster", render_yaml_to_directory=directory)
        if directory
        else k8s.Provider("cluster", context=config.require("context"))
    )
    opts = pulumi.ResourceOptions(providers=[provider])
    images = RuntimeImages("images", RuntimeImagesArgs(refs={"api-server": image}))
    space = Governance("space", GovernanceArgs(namespace=NAMESPACE, cpu="2", memory="2Gi", pods=10, retain=False), opts)

    peer = net.NetworkPolicyPeerArgs(
        namespace_selector=k8s.meta.v1.LabelSelectorArgs(match_labels={"kubernetes.io/metadata.name": home}),
        pod_selector=k8s.meta.v1.LabelSelectorArgs(match_labels=pods),
    )
    policies(space.namespace, peer, port, pulumi.ResourceOptions(provider=provider))
    url = f"http://{server}.{home}.svc:{port}"
    door = ApiServer(
        "door",
        ApiServerArgs(
            namespace=space.namespace,
            image=images.refs["api-server"],
            keys=keys,
            routes={model: {"url": url, "model": model, "max_in_flight": 16}},
            replicas=2,
            resources=ResourceArgs(cpu="250m", memory="256Mi"),
        ),
        opts,
    )
    pulumi.export("url", pulumi.Output.concat("http://", door.service_name, ".", space.namespace, ".svc:8000/v1"))


if __name__ == "__main__":
    main()
