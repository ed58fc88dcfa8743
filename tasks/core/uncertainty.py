"""How sure a figure is: intervals, the paired test of two models on the same prompts, and what a set can tell.

The prompts stand for all that could be asked; each counts as an independent draw. Sources: Wilson 1927, Probable
inference, the law of succession, and statistical inference (interval of a share); McNemar 1947, in its exact form (the
binomial test of the prompts on which two models differ); Efron 1979, Bootstrap methods (percentile interval). None
stands for what cannot be computed; no function raises.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Number = float | None
Interval = tuple[Number, Number]  # low and high end

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
LEVEL = 0.05  # of a test whose level nobody chose
DRAWS = 2000  # resamples of a bootstrap


def wilson(successes: int, total: int) -> tuple[Number, Number]:
    """Wilson's score interval at 95 % for a share of `successes` in `total` independent trials."""
    if total == 0:
        return None, None
    share, z2 = successes / total, Z95 * Z95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact test that two models are equally good, from the prompts that one alone answers rightly:
    min(1, 2 P(X >= max(gained, lost))), X binomial with gained + lost trials of chance 1/2. 1 where they never differ."""
    return min(1.0, 2 * mcnemar_better(max(gained, lost), min(gained, lost)))


def mcnemar_better(gained: int, lost: int) -> float:
    """One-sided p of the same test: P(X >= gained), the chance of so many prompts gained by a model that is no better."""
    from scipy.special import bdtrc

    return float(bdtrc(gained - 1, gained + lost, 0.5)) if gained else 1.0


def detectable(prompts: int, lost: int, level: float) -> Number:
    """The smallest difference of two accuracies, in 0..1, that the one-sided test calls better at `level` where so many
    prompts are lost: (gained - lost) / prompts with the fewest `gained` of p <= level. None where even gaining all
    other prompts would not do."""
    for gained in range(lost + 1, prompts - lost + 1):
        if mcnemar_better(gained, lost) <= level:
            return (gained - lost) / prompts
    return None


def bootstrap(number: int, figure: "Callable[[npt.NDArray[np.int64]], Any]", seed: int = 0) -> Interval:
    """95 % percentile interval of a figure over prompts. `figure` is given which of the `number` prompts are in a
    resample, with repetitions, and may return None where it cannot be computed; `DRAWS` resamples, always the same ones
    for equal `number` and `seed`. None where all resamples are alike, as of one prompt: that tells nothing of others."""
    import numpy as np

    random = np.random.default_rng(seed)
    found = [figure(random.integers(0, number, number)) for _ in range(DRAWS if number > 1 else 0)]
    known = [float(value) for value in found if value is not None]
    if not known or min(known) == max(known):
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """`bootstrap` of the mean of one value a prompt: of pass@k, or of the difference of two models on each prompt."""
    import numpy as np

    given = np.asarray(values, dtype=np.float64)
    return bootstrap(len(given), lambda chosen: given[chosen].mean(), seed)
