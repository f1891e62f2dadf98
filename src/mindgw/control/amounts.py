"""Sums of money as they are shown. Inside they are millionths of a dollar, outside decimals as text: no reader rounds them by accident."""

from mindgw.core.quota import MICRO


def dollars(micro: int) -> str:
    """`12.50`, `0.000123`, `-3.00`: at least two digits behind the point, and as many as it takes."""
    whole, part = divmod(abs(micro), MICRO)
    return f"{'-' if micro < 0 else ''}{whole}.{f'{part:06}'.rstrip('0').ljust(2, '0')}"
