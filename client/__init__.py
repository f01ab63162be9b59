"""First floor: what a client does with a message."""

import settings.threads  # noqa: F401
