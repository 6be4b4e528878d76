"""TCP ports on this machine: free ones for internal use, a check for the ones a person chose."""

from __future__ import annotations

import contextlib
import socket

from triton_vlm.launch_error import LaunchError

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> tuple[int, ...]:
    """`count` different loopback ports that nothing listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        return tuple(sock.getsockname()[1] for sock in sockets)


def require_free(host: str, port: int) -> None:
    """Check that a server could listen on `host` and `port`.

    Raises:
        LaunchError: something listens there, or the address is not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as sock:
            # As servers do: connections of a server that just ended do not count.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise LaunchError(
            f"cannot listen on {host} port {port} ({reason}): stop what uses it or choose another"
            " with --port (make serve PORT=...)"
        ) from exc


def is_listening(port: int) -> bool:
    """Whether a server on this machine accepts connections to `port`."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0):
            return True
    except OSError:
        return False
