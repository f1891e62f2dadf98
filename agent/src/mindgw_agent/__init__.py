"""The slim half of MindGateway: what runs on a GPU box."""

__version__ = "0.1.0"
