"""The order in which queued subtasks start."""

from __future__ import annotations

from typing import Final

# 4 bits of priority, 41 of milliseconds (some 69 years from EPOCH_MS on), 8 of rank: 53 bits, which a double holds
# exactly. Redis scores are doubles.
EPOCH_MS: Final = 1_735_689_600_000
_RANK_BITS: Final = 8
_AGE_BITS: Final = 41
_RANK_MAX: Final = 2**_RANK_BITS - 1
_AGE_MAX: Final = 2**_AGE_BITS - 1


def queue_score(*, priority: int, created_ms: int, rank: int) -> float:
    """The place of a subtask in its queue; lower starts first.

    Priority (1 lowest to 10 highest) outweighs age, and age outweighs rank: of one task's subtasks, those with the
    longest way still to go (``rank``: nodes on the longest path to a sink) start first. ``created_ms`` is the
    creation of the task, in milliseconds since the Unix epoch.
    """
    age = min(max(created_ms - EPOCH_MS, 0), _AGE_MAX)
    urgency = _RANK_MAX - min(max(rank, 0), _RANK_MAX)
    return float(((10 - priority) << (_AGE_BITS + _RANK_BITS)) | (age << _RANK_BITS) | urgency)
