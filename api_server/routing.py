"""From the name of a model that a client says to the servers that have it."""

from collections.abc import Callable, Mapping

from api_server import errors
from api_server.aliases import Alias, Aliases
from api_server.settings import Route


class Routing:
    """The models of the settings, and the aliases of now: all of them, or those that one key sees."""

    def __init__(self, routes: Mapping[str, Route], aliases: Aliases, only: frozenset[str] = frozenset()) -> None:
        self._every = routes
        self._aliases = aliases
        self._only = only
        """Names; empty: every one."""
        self.routes = {name: route for name, route in routes.items() if name in only} if only else routes

    def seen_by(self, models: frozenset[str]) -> "Routing":
        """Through a key with this list. A name that is not in it is as unknown as one that nobody has."""
        return Routing(self._every, self._aliases, models) if models else self

    @property
    def aliases(self) -> Mapping[str, Alias]:
        known = self._aliases.now()
        return {name: alias for name, alias in known.items() if name in self._only} if self._only else known

    def find(self, wanted: str, beginning: Callable[[], bytes] = bytes, *, native: bool) -> tuple[str, Route]:
        """Id and route of the model that is meant; `beginning`: of the conversation, for an alias that has two models. Ollama's own API
        takes `name` for `name:latest`. Raises ApiError."""
        aliases = self.aliases
        for name in (wanted, f"{wanted}:latest") if native else (wanted,):
            # An alias may lead to a model that the key does not see by itself.
            if name in aliases:
                model = aliases[name].target(beginning())
            elif name in self.routes:
                model = name
            else:
                continue
            if native and self._every[model].engine != "ollama":
                raise errors.not_native(name)
            return model, self._every[model]
        raise errors.unknown_model(wanted, [*self.routes, *aliases] or ["none"])

    def targets(self) -> dict[str, tuple[str, Route]]:
        """Each name that a client may say, to the id and route of its model; of an alias, the one that most conversations get."""
        stand_for = {name: name for name in self.routes} | {name: alias.models[0] for name, alias in self.aliases.items()}
        return {name: (model, self._every[model]) for name, model in stand_for.items()}

    def behind(self, alias: Alias) -> list[tuple[str, Route]]:
        """Id and route of each model that gets conversations with an alias."""
        return [(model, self._every[model]) for model in alias.models]
