"""MindGateway: one OpenAI-compatible endpoint in front of every GPU box you own."""

from mindgw_agent import __version__

__all__ = ["__version__"]
