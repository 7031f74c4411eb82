"""How much one token may ask for: requests and bytes a second, each with a burst, in one process.

A token bucket (https://en.wikipedia.org/wiki/Token_bucket) each. Several replicas each allow as much.
"""

from dataclasses import dataclass

from saucer.lib.errors import ResourceExhaustedError

# Tokens remembered; above it those that have not asked for longest are forgotten, which gives them a full burst again.
MAX_TOKENS = 10_000


@dataclass
class _Bucket:
    left: float
    filled_at_s: float

    def fill(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self.left = min(burst, self.left + max(0.0, now_s - self.filled_at_s) * rate_per_s)
        self.filled_at_s = now_s


class Limits:
    """A burst is what may come at once after a second of silence: one second's worth."""

    def __init__(self, requests_per_s: float, bytes_per_s: float) -> None:
        self._rates = (requests_per_s, bytes_per_s)
        self._buckets: dict[str, tuple[_Bucket, _Bucket]] = {}

    def take(self, token_id: str, size_bytes: int, now_s: float) -> None:
        """A request of a size; what is refused takes nothing.

        Raises ResourceExhaustedError: RATE_LIMITED, with the time after which there is room again, in seconds.
        """
        buckets = self._buckets.pop(token_id, None)
        if buckets is None:
            if len(self._buckets) >= MAX_TOKENS:
                del self._buckets[next(iter(self._buckets))]
            buckets = (_Bucket(self._rates[0], now_s), _Bucket(self._rates[1], now_s))
        # At the end: the first is the one that has not asked for longest.
        self._buckets[token_id] = buckets
        wanted = (1.0, float(size_bytes))
        for bucket, rate in zip(buckets, self._rates, strict=True):
            bucket.fill(rate, rate, now_s)
        # One larger than a burst passes when the bucket is full, and leaves it in debt.
        waits_s = [
            (min(amount, rate) - bucket.left) / rate
            for bucket, amount, rate in zip(buckets, wanted, self._rates, strict=True)
        ]
        if max(waits_s) > 0:
            raise ResourceExhaustedError(
                "RATE_LIMITED",
                f"The token may send {self._rates[0]:g} requests and {self._rates[1]:g} bytes a second; try later.",
                retry_after_s=f"{max(waits_s):.3f}",
            )
        for bucket, amount in zip(buckets, wanted, strict=True):
            bucket.left -= amount

    def owe(self, token_id: str, requests: int) -> None:
        """Further requests in one that has just passed: they are not refused, but paid for before the next passes."""
        self._buckets[token_id][0].left -= requests
