"""What ends a command of the Makefile. Each message says what to do; none is shown with a traceback."""


class CliError(Exception):
    """Pulumi ended with an error; the message is what it said."""


class CommandError(Exception):
    """The command cannot go on."""
