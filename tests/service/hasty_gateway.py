"""The API server with short pauses: a conversation that pauses keeps its memory for some seconds, so that a test need not wait minutes."""

import sys

from api_server import __main__, pauses

PAUSE_S = 15.0

if __name__ == "__main__":
    pauses.PAUSE_S = PAUSE_S
    sys.exit(__main__.main())
