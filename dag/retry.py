"""How long to wait before another attempt."""

from __future__ import annotations


def delay_s(retry: int, *, initial_s: float, max_s: float, jitter: float) -> float:
    """Seconds before retry number ``retry`` (the first is 1): at least ``initial_s * 2**retry``, at most ``max_s``.

    ``jitter``, from 0 to 1, is a chance number handed in; it adds up to half of the wait on top, so that attempts
    that failed together don't come back together. Raises ValueError where an argument is out of its range.
    """
    if retry < 0 or initial_s < 0 or max_s < 0 or not 0 <= jitter <= 1:
        raise ValueError(f"no delay for retry={retry}, initial_s={initial_s}, max_s={max_s}, jitter={jitter}")
    # Beyond 2**1023 a float overflows, long after every cap was reached.
    wait_s = initial_s * 2.0 ** min(retry, 1_000)
    return min(max_s, wait_s * (1 + jitter / 2))
