"""First floor: the round loop, the strategy, and what a run leaves behind."""

import settings.threads  # noqa: F401
