"""Who keeps account of what is used: the meter of finished requests, limits, rates, and the seal of the tags that travel along."""

from msgspec import Struct

from mindgw.gateway.meter import Meter
from mindgw.gateway.quota import Quotas
from mindgw.gateway.rates import Rates
from mindgw.gateway.tag import Seal


class Accounts(Struct, frozen=True):
    """One process's."""

    meter: Meter
    quotas: Quotas
    seal: Seal
    rates: Rates
