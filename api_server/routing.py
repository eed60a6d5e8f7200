"""From the name of a model that a client says to the servers that have it."""

from collections.abc import Callable, Mapping

from api_server import errors
from api_server.aliases import Alias, Aliases
from api_server.settings import Route


class Routing:
    """The models of the settings, and the aliases of now."""

    def __init__(self, routes: Mapping[str, Route], aliases: Aliases) -> None:
        self.routes = routes
        self._aliases = aliases

    @property
    def aliases(self) -> Mapping[str, Alias]:
        return self._aliases.now()

    def stand_for(self) -> dict[str, str]:
        """Every alias to the model that most of its conversations get."""
        return {name: alias.models[0] for name, alias in self.aliases.items()}

    def find(self, wanted: str, beginning: Callable[[], bytes] = bytes, *, native: bool) -> tuple[str, Route]:
        """Id and route of the model that is meant; `beginning`: of the conversation, for an alias that has two models. Ollama's own API
        takes `name` for `name:latest`. Raises ApiError."""
        aliases = self.aliases
        for name in (wanted, f"{wanted}:latest") if native else (wanted,):
            model = aliases[name].target(beginning()) if name in aliases else name
            if model not in self.routes:
                continue
            if native and self.routes[model].engine != "ollama":
                raise errors.not_native(name)
            return model, self.routes[model]
        raise errors.unknown_model(wanted, [*self.routes, *aliases])
