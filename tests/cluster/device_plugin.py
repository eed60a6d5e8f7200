"""A device plugin for nodes without GPUs: `python -m tests.cluster.device_plugin KUBELET_DIRECTORY`, on the kubelet's own API.

It says of each GPU that the fake NVML has whether it is healthy, once a second, and gives a container its GPUs as NVIDIA's plugin does by
default: by their UUIDs in a variable, which NVIDIA's runtime reads. Source: k8s.io/kubelet, pkg/apis/deviceplugin/v1beta1/api.proto, and
NVIDIA's k8s-device-plugin, README.md, "deviceListStrategy".
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pynvml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

RESOURCE, SOCKET = "nvidia.com/gpu", "tests-nvidia.sock"
_PACKAGE = "v1beta1"
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "Empty": [],
    "Options": [("pre_start_required", 1, "bool"), ("get_preferred_allocation_available", 2, "bool")],
    "RegisterRequest": [("version", 1, "string"), ("endpoint", 2, "string"), ("resource_name", 3, "string"), ("options", 4, "Options")],
    "Device": [("ID", 1, "string"), ("health", 2, "string")],
    "Devices": [("devices", 1, "Device[]")],
    "ContainerAsks": [("devices_ids", 1, "string[]")],
    "Asks": [("container_requests", 1, "ContainerAsks[]")],
    # On the wire a map is a list of these.
    "Variable": [("key", 1, "string"), ("value", 2, "string")],
    "ContainerGets": [("envs", 1, "Variable[]")],
    "Gets": [("container_responses", 1, "ContainerGets[]")],
}
"""Of the API, with the fields that are used, under shorter names: only numbers and types are on the wire."""


def _classes() -> dict[str, Any]:
    kinds = {"bool": 8, "string": 9, "message": 11}
    file = descriptor_pb2.FileDescriptorProto(name="deviceplugin.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            of = kind.removesuffix("[]")
            label = 3 if kind.endswith("[]") else 1
            made = message.field.add(name=field, number=number, label=label, type=kinds.get(of, kinds["message"]))
            if of not in kinds:
                made.type_name = f".{_PACKAGE}.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


OF: dict[str, Any] = _classes()


def _bytes(message: Any) -> bytes:
    return message.SerializeToString()


class Plugin:
    """GPUs of the fake NVML."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._count = int(pynvml.nvmlDeviceGetCount())

    def _health(self, index: int) -> str:
        try:
            pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError:
            return "Unhealthy"
        return "Healthy"

    def options(self, _: Any, __: Any) -> Any:
        return OF["Options"]()

    def watch(self, _: Any, context: Any) -> Iterator[Any]:
        """All devices, whenever one of them changes."""
        said: list[str] = []
        while context.is_active():
            health = [self._health(index) for index in range(self._count)]
            if health != said:
                yield OF["Devices"](devices=[OF["Device"](ID=f"GPU-{index}", health=word) for index, word in enumerate(health)])
            said = health
            time.sleep(1)

    def allocate(self, asks: Any, _: Any) -> Any:
        variables = ([OF["Variable"](key="NVIDIA_VISIBLE_DEVICES", value=",".join(each.devices_ids))] for each in asks.container_requests)
        return OF["Gets"](container_responses=[OF["ContainerGets"](envs=envs) for envs in variables])


def _handler(plugin: Plugin) -> grpc.GenericRpcHandler:
    def reads(name: str) -> Any:
        return OF[name].FromString

    methods = {
        "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(plugin.options, reads("Empty"), _bytes),
        "ListAndWatch": grpc.unary_stream_rpc_method_handler(plugin.watch, reads("Empty"), _bytes),
        "Allocate": grpc.unary_unary_rpc_method_handler(plugin.allocate, reads("Asks"), _bytes),
    }
    return grpc.method_handlers_generic_handler(f"{_PACKAGE}.DevicePlugin", methods)


def main() -> int:
    # The path of a socket has 107 characters at most.
    os.chdir(sys.argv[1])
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_handler(Plugin()),))
    server.add_insecure_port(f"unix:{SOCKET}")
    server.start()
    with grpc.insecure_channel("unix:kubelet.sock") as channel:
        register = channel.unary_unary(
            f"/{_PACKAGE}.Registration/Register",
            request_serializer=_bytes,
            response_deserializer=OF["Empty"].FromString,
        )
        register(OF["RegisterRequest"](version=_PACKAGE, endpoint=SOCKET, resource_name=RESOURCE, options=OF["Options"]()), timeout=10)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
