"""From nothing to a chat answer, and back: `make up`, `make down`, `make status`, `make explain`."""
