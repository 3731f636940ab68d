"""No network but loopback, in this process and for the rest of its life: Python reports each attempt to an audit hook."""

import ipaddress
import socket
import sys

LOCAL = {"localhost", "", None, "0.0.0.0", "::", socket.gethostname(), "localhost.localdomain"}


def forbid():
    """From now on a connection, a datagram or a look-up that is not for this machine raises `RuntimeError`."""
    sys.addaudithook(_refuse)


def _refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # others are Unix sockets
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL and not _is_loopback(host):
        raise RuntimeError(f"A test tried to reach the network: {event} {host}.")


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
