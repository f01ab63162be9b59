"""The roof: a federation inside one process, and the `fedferry` command."""

import settings.threads  # noqa: F401
