"""HOST:PORT where the ranks or machines of a run meet. What can never work there is refused in seconds, with a remedy:
an impossible port, a name without an address, another program that listens.
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
ANSWER_SECONDS = 5.0  # in which a store answers, and twice as long until a silent program counts as another one
DEFAULT_PORT = 29400  # torchrun's, where none is given

_HELLO = struct.pack("<BI", 0, 0x3C85F7CE)  # of a client of torch's TCPStore
_NUMBER_OF_KEYS = struct.pack("<B", 7)  # a question whose answer is eight bytes


class Endpoint(NamedTuple):
    """A place, and the words of the user that name it."""

    flag: str
    host: str
    port: int

    @classmethod
    def parse(cls, flag: str, text: str) -> "Endpoint":
        """Of HOST, HOST:PORT or [ADDRESS]:PORT. Raises: UserError where it is none of them."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or port.endswith("]"):
            host, port = text.strip(), str(DEFAULT_PORT)
        if not host.startswith("[") and ":" in host:
            raise UserError(f"{flag} {text}: an IPv6 address needs brackets: [ADDRESS]:PORT")
        host = host.removeprefix("[").removesuffix("]")
        if not host:
            raise UserError(f"{flag} {text} must be HOST:PORT, e.g. node-0:29500")
        if not (port.isascii() and port.isdigit() and 1 <= int(port[:9]) <= 65535):
            raise UserError(f"{flag} {text}: the port must be a number from 1 to 65535, e.g. {host}:29500")
        return cls(flag, host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def require_usable(self, hosted_here: bool | None = None) -> None:
        """Returns where the name has an address, and at the port is a store of torch's or nobody yet.

        Args:
            hosted_here: whether this machine opens the store; None: where the address is its own.

        Raises: UserError.
        """
        addresses = self.addresses()
        if self._is_another_program():
            raise UserError(
                f"{self.flag} {self}: another program listens on this port, not the store of a run: give another port, "
                f"the same on all machines"
            )
        if hosted_here is None:
            hosted_here = any(_is_own(address) for address in addresses)
        if hosted_here:
            self._require_free()

    def addresses(self) -> list[str]:
        """What the name resolves to; the system's own patience may be minutes. Raises: UserError where it has none."""
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
                f"{self.flag} {self}: the name {self.host} has no address ({reasons[-1]}): give an address, or a name "
                "that this machine can resolve"
            )
        return found

    def _is_another_program(self) -> bool:
        """Asked twice: a store that is just closing does not answer either."""
        answers = []
        for pause in (0.0, 1.0):
            time.sleep(pause)
            answers.append(self._is_store())
            if answers[-1] is not False:
                return False
        return True

    def _is_store(self) -> bool | None:
        """Whether a store of torch's answers; None: nobody listens, or nobody can be reached."""
        try:
            visit = socket.create_connection((self.host, self.port), ANSWER_SECONDS)
        except OSError:
            return None
        with visit:
            try:
                visit.sendall(_HELLO + _NUMBER_OF_KEYS)
                answer = visit.recv(8, socket.MSG_WAITALL)
            except OSError:
                return False
        return len(answer) == 8 and 0 <= int.from_bytes(answer, "little", signed=True) < 1 << 40

    def _require_free(self) -> None:
        """Another store may listen already: that of this run, opened by another process of this machine."""
        try:
            socket.create_server(("", self.port)).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE and self._is_store():
                return
            remedy = "a port from 1024 on" if error.errno == errno.EACCES else "another port, the same on all machines"
            raise UserError(
                f"{self.flag} {self}: this machine cannot listen on port {self.port} "
                f"({os.strerror(error.errno or 0)}): give {remedy}"
            ) from error


def _is_own(address: str) -> bool:
    """Whether it is one of this machine's addresses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
    except OSError:
        return False
    return True
