"""Count the tokens and the cost of requests, and keep them under the configured caps."""

from __future__ import annotations

import threading
from collections import Counter

from apa_cli.config.schema import JudgeConfig


class Spending:
    """Shared by the threads of the judge. Each request is admitted before it is sent, and settled afterwards.

    A request is admitted if the caps allow it and those in flight to be as large as the largest so far. The first goes
    alone, as no size is known before it. So only a request larger than all before it, or a failed one, whose usage no
    server reports, can exceed a cap.
    """

    def __init__(self, config: JudgeConfig, key: str) -> None:
        self._key = key
        self._prices = config.price_per_million_input, config.price_per_million_output
        caps = {"max_tokens_total": config.max_tokens_total, "max_cost": config.max_cost}
        self._caps: dict[str, float] = {name: cap for name, cap in caps.items() if cap is not None}
        self._changed = threading.Condition()
        self._in_flight = 0
        self._largest = (0, 0)  # tokens of one request, in and out
        self.spent: Counter[str] = Counter(requests=0, input_tokens=0, output_tokens=0, requests_without_usage=0)
        self.stopped: str | None = None  # why no more requests are admitted

    def admit(self, stop: threading.Event) -> bool:
        """Whether a request may be sent now; waits for the first one to be settled."""
        with self._changed:
            while self._caps and self._in_flight and self._largest == (0, 0) and not stop.is_set():
                self._changed.wait(timeout=0.1)
            for name, cap in self._caps.items():
                spent = self._measure(name, self.spent["input_tokens"], self.spent["output_tokens"])
                if spent + (self._in_flight + 1) * self._measure(name, *self._largest) > cap:
                    self.stopped = self.stopped or f"{self._key}.{name}={cap:.12g} is used up: {spent:.6g} spent"
            admitted = self.stopped is None and not stop.is_set()
            self.spent["requests"] += admitted
            self._in_flight += admitted
            return admitted

    def settle(self, usage: tuple[int, int] | None) -> None:
        """Count the tokens of a request, in and out; None, if the server does not report them, ends capped judging."""
        with self._changed:
            self._in_flight -= 1
            if usage is not None:
                self.spent.update(input_tokens=usage[0], output_tokens=usage[1])
                self._largest = max(self._largest[0], usage[0]), max(self._largest[1], usage[1])
            else:
                self.spent["requests_without_usage"] += 1
                if self._caps:
                    cap = next(iter(self._caps))
                    self.stopped = f"the server reports no usage, so {self._key}.{cap} cannot be kept"
            self._changed.notify_all()

    def cost(self, spent: Counter[str]) -> float | None:
        """In the currency of the prices, None without them."""
        if None in self._prices:
            return None
        return self._measure("max_cost", spent["input_tokens"], spent["output_tokens"])

    def _measure(self, cap: str, tokens_in: int, tokens_out: int) -> float:
        """Tokens in the unit of a cap."""
        if cap == "max_tokens_total":
            return tokens_in + tokens_out
        return (tokens_in * (self._prices[0] or 0.0) + tokens_out * (self._prices[1] or 0.0)) / 1e6
