"""Shares of 1 as people read them."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share of 1 as a percentage; rounding never turns almost all into all, nor a few into none.

    >>> percent(0.9173), percent(1.0), percent(0.99999), percent(0.00001)
    ('91.73 %', '100 %', '> 99.99 %', '< 0.01 %')
    """
    if share in (0, 1):
        return f"{share * 100:.0f} %"
    if 0.99995 <= share < 1:
        return "> 99.99 %"
    if 0 < share < 0.00005:
        return "< 0.01 %"
    return f"{share * 100:.2f} %"
