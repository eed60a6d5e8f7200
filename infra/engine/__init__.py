"""Runs Pulumi on the program of this repository, and reads what an update would do before it runs."""
