"""A switch in this network namespace, and a shaped cable to each rank's."""

from __future__ import annotations

import dataclasses
import ipaddress
import subprocess

from links.isolation import run

__all__ = ["HUB", "INTERFACE", "Shape", "build_switch", "plug_in", "rank_address", "unplug"]

_NETWORK = ipaddress.ip_network("10.77.0.0/16")  # inside the namespaces only
HUB = str(_NETWORK[1])
INTERFACE = "cable"
_SWITCH = "switch"
_CONGESTION = "net.ipv4.tcp_congestion_control=bbr"  # reno and cubic fill the queue of a token bucket and stall


@dataclasses.dataclass(frozen=True)
class Shape:
    """What every cable carries.

    Attributes:
        bandwidth: Bytes per second each way, headers of Ethernet, IP and TCP included.
        mtu: Bytes per packet.
        burst: Bytes a token bucket lets pass at once.
        queue_s: Seconds of traffic a bucket queues before it drops.
    """

    bandwidth: float = 100e6
    mtu: int = 9000
    burst: int = 256 << 10
    queue_s: float = 0.02

    @property
    def bucket(self) -> str:
        """Arguments of `tc qdisc add dev X root`."""
        limit = self.burst + self.bandwidth * self.queue_s
        return f"tbf rate {self.bandwidth * 8:.0f}bit burst {self.burst} limit {limit:.0f}"


def build_switch(mtu: int) -> None:
    """Make the switch that all cables end in; this namespace is on it as `HUB`."""
    run(f"ip link add {_SWITCH} mtu {mtu} type bridge")
    run(f"ip addr add {HUB}/{_NETWORK.prefixlen} dev {_SWITCH}")
    run(f"ip link set {_SWITCH} up")
    run(f"sysctl -qw {_CONGESTION}")


def rank_address(rank: int) -> str:
    """Return the address of a rank."""
    return str(_NETWORK[256 + rank])


def plug_in(rank: int, pid: int, shape: Shape) -> None:
    """Connect the network namespace of process `pid` as `rank`: a veth pair with a token bucket at both ends."""
    port = f"port{rank}"
    inside = f"nsenter --net=/proc/{pid}/ns/net"
    run(f"ip link add {port} mtu {shape.mtu} type veth peer name {INTERFACE} mtu {shape.mtu} netns {pid}")
    run(f"ip link set {port} master {_SWITCH} up")
    run(f"{inside} ip addr add {rank_address(rank)}/{_NETWORK.prefixlen} dev {INTERFACE}")
    run(f"{inside} ip link set {INTERFACE} up")
    run(f"{inside} ip link set lo up")
    run(f"{inside} sysctl -qw {_CONGESTION}")
    run(f"tc qdisc add dev {port} root {shape.bucket}")
    run(f"{inside} tc qdisc add dev {INTERFACE} root {shape.bucket}")


def unplug(rank: int) -> None:
    """Remove the cable of a rank, unless its namespace has already taken it along."""
    subprocess.run(["ip", "link", "del", f"port{rank}"], check=False, capture_output=True)
