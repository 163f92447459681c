"""Parses and checks the HOST:PORT of a rendezvous. An address that cannot work is refused within seconds and with a
remedy: an impossible port, a host name that cannot be resolved, another program on the port.
"""

import errno
import os
import socket
import struct
import threading
import time
from typing import NamedTuple

from megascratch.config.errors import UserError

RESOLVE_SECONDS = 10.0
ANSWER_SECONDS = (
    5.0  # timeout for an answer of the store; after two timeouts it counts as another program
)
DEFAULT_PORT = 29400  # torchrun's default

_HELLO = struct.pack("<BI", 0, 0x3C85F7CE)  # greeting of a client of torch's TCPStore
_NUMBER_OF_KEYS = struct.pack("<B", 7)  # a query whose answer is eight bytes


class Endpoint(NamedTuple):
    """A host and a port, and the flag with which the user gave them."""

    flag: str
    host: str
    port: int

    @classmethod
    def parse(cls, flag: str, text: str) -> "Endpoint":
        """Parses HOST, HOST:PORT or [ADDRESS]:PORT. Raises: UserError if the text is none of them."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or port.endswith("]"):
            host = text.strip()
            port = str(DEFAULT_PORT)
        if not host.startswith("[") and ":" in host:
            raise UserError(f"{flag} {text}: an IPv6 address needs brackets: [ADDRESS]:PORT")
        host = host.removeprefix("[").removesuffix("]")
        if not host:
            raise UserError(f"{flag} {text} must be HOST:PORT, e.g. node-0:29500")
        if not (port.isascii() and port.isdigit() and 1 <= int(port[:9]) <= 65535):
            raise UserError(
                f"{flag} {text}: the port must be a number from 1 to 65535, e.g. {host}:29500"
            )
        return cls(flag, host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def require_usable(self, hosted_here: bool | None = None) -> None:
        """Checks that the host name can be resolved, and that the port is free or has a TCPStore of torch on it.

        Args:
            hosted_here: whether this machine opens the store; None: if the address is one of its own.

        Raises: UserError.
        """
        addresses = self.addresses()
        if self._is_another_program():
            raise UserError(
                f"{self.flag} {self}: another program listens on this port, which is not the store of a run: give "
                "another port, the same on all machines"
            )
        if hosted_here is None:
            hosted_here = any(_is_own(address) for address in addresses)
        if hosted_here:
            self._require_free()

    def addresses(self) -> list[str]:
        """The addresses that the host name resolves to. It is looked up in a thread, because the system's own timeout
        may be minutes. Raises: UserError if there are none."""
        found: list[str] = []
        reasons = ["no answer from the name server"]

        def resolve() -> None:
            try:
                infos = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                reasons.append(getattr(error, "strerror", None) or str(error))
                return
            found.extend(str(info[4][0]) for info in infos)

        thread = threading.Thread(target=resolve, name="resolve", daemon=True)
        thread.start()
        thread.join(RESOLVE_SECONDS)
        if not found:
            raise UserError(
                f"{self.flag} {self}: the host name {self.host} cannot be resolved ({reasons[-1]}): give an address, "
                "or a name that this machine can resolve"
            )
        return found

    def _is_another_program(self) -> bool:
        """Whether something other than torch's store listens. Tried twice, because a store that is closing does not
        answer either."""
        answers = []
        for pause in (0.0, 1.0):
            time.sleep(pause)
            answers.append(self._is_store())
            if answers[-1] is not False:
                return False
        return True

    def _is_store(self) -> bool | None:
        """Whether a TCPStore of torch answers; None: nothing listens there, or it cannot be reached."""
        try:
            connection = socket.create_connection((self.host, self.port), ANSWER_SECONDS)
        except OSError:
            return None
        with connection:
            try:
                connection.sendall(_HELLO + _NUMBER_OF_KEYS)
                answer = connection.recv(8, socket.MSG_WAITALL)
            except OSError:
                return False
        return len(answer) == 8 and 0 <= int.from_bytes(answer, "little", signed=True) < 1 << 40

    def _require_free(self) -> None:
        """Raises: UserError if the port cannot be opened. The store of this run may already be listening there, opened
        by another process of this machine."""
        try:
            socket.create_server(("", self.port)).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE and self._is_store():
                return
            remedy = (
                "a port of at least 1024"
                if error.errno == errno.EACCES
                else "another port, the same on all machines"
            )
            raise UserError(
                f"{self.flag} {self}: this machine cannot listen on port {self.port} "
                f"({os.strerror(error.errno or 0)}): give {remedy}"
            ) from error


def _is_own(address: str) -> bool:
    """Whether the address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
    except OSError:
        return False
    return True
