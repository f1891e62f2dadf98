"""Any other server that speaks OpenAI's API: what its model list says is all that is known of it."""

from typing import ClassVar

from mindgw_agent.engines.engine import Engine


class Generic(Engine):
    """One slot unless the operator sets more: it is not known whether the engine queues, batches or falls over."""

    kind: ClassVar[str] = "generic"
