"""A Prefect server with an empty database for tests that run flows in their own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

STARTUP_TIMEOUT = 300


@contextmanager
def harness() -> Iterator[None]:
    """Prefect's own harness, without services that no test of it needs: they would take a tenth of a core all along."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.server import IDLE_SERVICES

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # not for the servers that tests start
            for name in IDLE_SERVICES:
                patch.setenv(f"PREFECT_SERVER_SERVICES_{name}_ENABLED", "false")
            stack.enter_context(prefect_test_harness(server_startup_timeout=STARTUP_TIMEOUT))
        yield
