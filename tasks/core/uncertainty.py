"""How sure a figure is: its interval.

Source: Wilson 1927, Probable inference, the law of succession, and statistical inference (interval of a share).
"""

from math import sqrt

Number = float | None

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(successes: int, total: int) -> tuple[Number, Number]:
    """Wilson's score interval at 95 % for a share of `successes` in `total` independent trials."""
    if total == 0:
        return None, None
    share, z2 = successes / total, Z95 * Z95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
