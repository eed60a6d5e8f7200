"""The section `modelServers`: servers of one model each, beside the fleet."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from components.contract import MODEL_SERVER, model_server
from infra.program.settings.section import PROJECT, Bytes, ModelName, Resources, Section, SettingsError, Speed
from infra.program.settings.workloads import WorkloadSettings

SECTION, OLD = "modelServers", "modelServer"
ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A DNS label, so short that `model-server-NAME-metrics` is one too."""


class ModelServerSettings(Section):
    name: ServerName
    """Names its objects, `model-server-NAME`. The one that is called `model-server` has that name alone, as the first release's had."""
    replicas: int = Field(default=1, ge=1, le=16)
    """Processes of this server, one a pod."""
    model: ModelName
    """A model of the store."""
    model_id: str = Field(pattern=r"^[A-Za-z0-9._:/-]{1,100}$")
    """The id that clients use for it; differs from the fleet's ids, and from those of other model servers."""
    context_length: int = Field(default=4096, ge=512, le=1_048_576)
    """Tokens per request; longer ones are refused."""
    parallel: int = Field(default=2, ge=1, le=64)
    """Requests that are generated at once."""
    max_queue: int = Field(default=16, ge=0, le=512)
    """Requests that may wait; more get 503."""
    prompt_cache: Bytes | None = None
    """Memory that each server may keep old prompts in: the next turn of such a conversation reads only what is new. Unset, as much as its
    slots hold, where resources.memory has room for it."""
    speed: Speed | None = None
    """Measured speed of one replica, for the turns a minute that preview, outputs and the page show."""
    resources: Resources
    local_size: Bytes | None = None
    """Size of the node-local claim that each replica keeps its copy of the model in; storage.hot.size when unset."""
    placement: WorkloadSettings | None = None
    """Nodes, taints, zones and account of its pods; unset, those of workloads.model-server."""

    @property
    def component(self) -> str:
        """What its objects and its pods are called."""
        return model_server(self.name)


def is_old(document: Mapping[str, Any]) -> bool:
    """Whether the configuration has the one model server of the first release."""
    return OLD in document


def in_a_list(document: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the setting of the first release in today's form. Raises SettingsError when it has both."""
    if not is_old(document):
        return dict(document)
    # An empty list is what Pulumi makes of no list.
    if document.get(SECTION):
        raise SettingsError(f"{PROJECT}:{OLD}: got it beside {SECTION}, want that alone; make it an item there, with name: {MODEL_SERVER}")
    found = document[OLD]
    if isinstance(found, Mapping) and "name" in found:
        raise SettingsError(f"{PROJECT}:{OLD}.name: got a name, want it in {SECTION} alone; make all of {OLD} an item there")
    named = {"name": MODEL_SERVER, **found} if isinstance(found, Mapping) else found
    return {**{key: value for key, value in document.items() if key != OLD}, SECTION: [named]}


def as_written(line: str) -> str:
    """What is wrong with a configuration of the old form, by the names that stand in it."""
    return line.replace(f"{SECTION}.0", OLD)


def old_form() -> str:
    """What is said of a configuration with the setting of the first release."""
    want = f"want {SECTION}, a list; until then it is the one item, with name: {MODEL_SERVER} (docs/configuration.md)"
    return f"{PROJECT}:{OLD}: got the old form, {want}"
