"""Which clients take part in a round: drawn from (seed, round)."""

import math

import numpy as np

from server.directory import Directory
from settings.errors import InputError, counted, unknown
from settings.schema import Settings, number_in


class Cohort:
    """The clients of each round: fixed ids, everybody, or sampled without replacement."""

    def __init__(self, directory: Directory, settings: Settings) -> None:
        self._ids = list(directory.node_of)
        self._seed = settings.seed
        self._named = settings.named_clients()
        for name in self._named:
            if name not in directory.node_of:
                raise unknown("client id", name, self._ids)
            if self._named.count(name) > 1:
                raise InputError(f"--client-ids names {name} twice")
        self._size = self._read_size(settings.cohort, "--cohort")
        asked = math.ceil(self._size * settings.over_select)
        self._asked = min(asked, len(self._ids))
        self._eval_size = self._read_size(settings.eval_cohort or settings.cohort, "--eval-cohort")
        self._evaluates_named = bool(self._named) and not settings.eval_cohort
        if settings.min_replies > self.enough:
            raise InputError(
                f"--min-replies {settings.min_replies} is over the {counted(self.enough, 'client')} "
                "that a round waits for: every round would leave the model as it is"
            )

    def _read_size(self, text: str, flag: str) -> int:
        # More than there are is everybody, so that one command serves small and large populations.
        return min(number_in(text, flag) or len(self._ids), len(self._ids))

    def train(self, server_round: int) -> list[str]:
        """Ids of the clients that are asked in a round (1, 2, ...): sorted, or as the user named them."""
        return self._named or self._draw(self._asked, server_round)

    @property
    def enough(self) -> int:
        """Replies that close a round: with over-selection, fewer than are asked."""
        return len(self._named) or self._size

    def is_everybody(self, clients: int) -> bool:
        """Whether so many clients are all there are."""
        return clients == len(self._ids)

    def evaluate(self) -> list[str]:
        """Ids of the clients that evaluate: the same in every round, so that the curve compares."""
        return self._named if self._evaluates_named else self._draw(self._eval_size, 0)

    def _draw(self, size: int, server_round: int) -> list[str]:
        rng = np.random.default_rng([self._seed, server_round])
        chosen = rng.choice(len(self._ids), size=size, replace=False, shuffle=False)
        return [self._ids[index] for index in np.sort(chosen)]
