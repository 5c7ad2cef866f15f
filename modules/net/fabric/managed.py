"""What `umvm net` does with a host of a virtual network: links, forwards, captures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umvm.errors import NotFound

from .address import Address
from .capture import Capture, Conversation
from .forward import Forward, Outward, inward, reset

if TYPE_CHECKING:
    from collections import deque

    from .link import Wire
    from .links import Links
    from .network import Network
    from .stack import Fabric


class Managed:
    """A host as those see it who look after its network."""

    vm: Any
    network: Network
    wires: deque[Wire]
    _links: Links | None
    _forwards: list[Forward]

    def _tell_own(self) -> None:
        raise NotImplementedError

    def _own(self) -> Fabric:
        raise NotImplementedError

    @property
    def network_name(self) -> str:
        """The network that this host is on."""
        return self.network.name

    def net_show(self) -> dict[str, Any]:
        """The network of this stack."""
        return {"name": self.network.name, "host": self.network.host.names[0]}

    @property
    def host_key(self) -> str:
        """Which host it is."""
        return self.network.key

    def net_link(
        self, down: bool | None = None, other: str | None = None, **settings: float
    ) -> dict[str, Any]:
        """Take the host from the network, or put it back; change its link, or that to the host
        with the key `other`. What it is now."""
        if other is not None:
            return self._link_pair(other, down, settings)
        host = self.network.host
        changed = {**host.settings, **settings}
        self.network.update(
            down=host.down if down is None else bool(down),
            settings={key: value for key, value in changed.items() if value},
        )
        if down is not None and self._links is not None:
            self._links.carrier(not down)
        if down:
            self._reset()
            for wire in self.wires:
                wire.cut()
        shown = {key: value for key, value in self.network.host.settings.items() if key != "to"}
        return {"down": self.network.host.down, **shown}

    def _link_pair(self, key: str, down: bool | None, settings: dict[str, float]) -> dict[str, Any]:
        other = self.network.hosts().get(key)
        if other is None:
            raise NotFound("there is no such host any more")
        host = self.network.host
        pairs: dict[str, dict[str, Any]] = dict(host.settings.get("to", {}))
        now = {**pairs.get(key, {}), **settings}
        if down is not None:
            now["down"] = bool(down)
        pairs[key] = {name: value for name, value in now.items() if value}
        kept = {known: each for known, each in pairs.items() if each}
        rest = {name: value for name, value in host.settings.items() if name != "to"}
        self.network.update(settings=rest | ({"to": kept} if kept else {}))
        if down:
            self._reset(other.ips)
        return {"down": False, **pairs[key]}

    def _reset(self, ips: tuple[bytes, ...] | None = None) -> None:
        """End the connections with other hosts, or with that of some addresses."""
        for pid in self.vm.guest_pids():
            reset(self._own(), pid, ips)

    # --- captures --------------------------------------------------------------------------------

    capture: Capture | None = None
    """Where what is sent is written to."""

    def net_capture(self, path: str | None = None, pid: int = 0) -> None:
        """Write what is sent from now on to a file, while the process `pid` lives; or stop it."""
        old = self.capture
        self.capture = None if path is None else Capture(path, pid)
        self._tell_own()
        if old is not None:
            old.close()
        if path is not None:
            for guest in self.vm.guest_pids():
                reset(self._own(), guest, None, streams=False)

    def _captures(self) -> Capture | None:
        """The capture that somebody wants still."""
        capture = self.capture
        if capture is not None and not capture.alive():
            self.net_capture()
            return None
        return capture

    def conversation(self, client: Address, server: Address) -> Conversation | None:
        """What is to be told of a new connection."""
        capture = self._captures()
        return None if capture is None else Conversation(capture, client, server)

    def show(self, source: Address, to: Address, data: bytes) -> None:
        """A datagram was sent."""
        capture = self._captures()
        if capture is not None:
            capture.datagram(source, to, data)

    def net_forward(
        self, spec: str | None = None, delete: bool = False, out: bool = False
    ) -> list[dict[str, str]]:
        """Add or end a forward; those that there are, or the new one."""
        if spec is None:
            return [forward.describe() for forward in self._forwards]
        if not delete:
            new = Outward(self._own(), spec) if out else inward(self._own(), spec)
            self._forwards.append(new)
            return [new.describe()]
        for forward in self._forwards:
            if forward.listen == spec or forward.listen == f"127.0.0.1:{spec}":
                self._forwards.remove(forward)
                forward.close()
                return []
        raise NotFound(f"there is no forward of {spec}")
