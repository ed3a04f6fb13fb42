"""What JAX traces and compiles while something runs."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that receives every event of JAX's compiler inside the block."""
    events: list[str] = []

    def listen(event: str, seconds: float, **details: object) -> None:
        if event.startswith("/jax/core/compile"):
            events.append(f"{event} {details}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
