from __future__ import annotations

import socket

import pytest

from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import LOOPBACK, free_ports, is_listening, require_free


def test_free_ports_are_different_and_can_be_listened_on() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        require_free(LOOPBACK, port)


def test_a_port_in_use_is_refused_with_its_number_and_what_to_do() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert is_listening(port)
        with pytest.raises(LaunchError, match=rf"port {port} .*choose another"):
            require_free(LOOPBACK, port)
    assert not is_listening(port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"192\.0\.2\.1"):
        require_free("192.0.2.1", 0)
