"""Which names and addresses are this machine's own."""

import ipaddress


def is_loopback(name: str) -> bool:
    """Whether a host's name or address reaches this machine alone."""
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
