"""Typed client of the management API: pure request builders and thin transports. Standard library only, so that the CLI starts fast."""
