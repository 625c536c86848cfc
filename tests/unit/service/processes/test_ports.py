"""Addresses of both families, and one line for those at which nobody can listen."""

import errno
import socket

import pytest

from service.processes.ports import address_of, binding, listen, serving_at
from service.processes.state import free_port
from service.settings import SetupError


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", socket.AF_INET), ("localhost", socket.AF_INET), ("::1", socket.AF_INET6), ("::", socket.AF_INET6)],
)
def test_a_host_has_the_family_of_its_address(host, family):
    assert address_of(host, 80)[0] == family
    assert 0 < free_port(host, 0, "X__PORT") < 32_768, "a connection that goes out may take it"
    with listen(host, 0, "X__PORT", 1) as listener:
        assert listener.family == family


def test_every_address_of_this_machine_is_of_both_families():
    with listen("::", 0, "X__PORT", 5) as listener:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), timeout=5).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_of_a_taken_port_the_port_is_to_be_changed(host):
    with listen(host, 0, "X__PORT", 1) as taken:
        port = taken.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        with pytest.raises(SetupError) as error:
            listen(host, port, "X__PORT", 1)
    assert str(error.value) == f"cannot listen on {shown}:{port}: Address already in use; set X__PORT to another port"


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid"])
def test_of_an_address_of_another_machine_the_host_is_to_be_changed(host):
    with pytest.raises(SetupError, match=r"; set X__HOST to an address of this machine$"):
        listen(host, 0, "X__PORT", 1)


def test_a_port_for_root_alone_is_to_be_changed():
    said = "Permission denied; set X__PORT to another port$"
    with pytest.raises(SetupError, match=said), binding("127.0.0.1", 80, "X__PORT"):
        raise PermissionError(errno.EACCES, "x")


def test_an_address_of_the_rpc_is_one_line_too():
    said = "^cannot listen on a:1: Address already in use; X__ADDRESSES says where$"
    with pytest.raises(SetupError, match=said), serving_at("a:1", "X__ADDRESSES"):
        raise OSError(errno.EADDRINUSE, "error while attempting to bind on address ('127.0.0.1', 1)")
