"""A place where ranks can never meet is refused in seconds, with what is wrong and what to do."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch.distributed as dist

from megascratch.config.errors import UserError
from megascratch.parallel import endpoint
from megascratch.parallel.endpoint import Endpoint
from megascratch.parallel.rendezvous import join

RIGHT = {
    "node-0:29500": ("node-0", 29500),
    "node-0": ("node-0", 29400),  # torchrun's own port
    "10.0.0.1:1": ("10.0.0.1", 1),
    "[::1]:65535": ("::1", 65535),
    "[::1]": ("::1", 29400),
}
WRONG = {
    "node-0:65536": "the port must be a number from 1 to 65535, e.g. node-0:29500",
    "node-0:0": "the port must be a number from 1 to 65535",
    "node-0:-1": "the port must be a number from 1 to 65535",
    "node-0:": "the port must be a number from 1 to 65535",
    "node-0:http": "the port must be a number from 1 to 65535",
    "node-0:٣": "the port must be a number from 1 to 65535",
    "node-0:99999999999999999999": "the port must be a number from 1 to 65535",
    "::1:29500": "an IPv6 address needs brackets: [ADDRESS]:PORT",
    ":29500": "must be HOST:PORT, e.g. node-0:29500",
}


@pytest.mark.parametrize("text", RIGHT)
def test_a_place_is_a_host_and_a_port(text):
    assert Endpoint.parse("--rdzv-endpoint", text)[1:] == RIGHT[text]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_place_is_refused_with_the_law(text):
    with pytest.raises(UserError) as refusal:
        Endpoint.parse("--rdzv-endpoint", text)
    assert str(refusal.value).startswith(f"--rdzv-endpoint {text}") and WRONG[text] in str(
        refusal.value
    )


@contextmanager
def program(answer: bytes | None) -> Iterator[int]:
    """The port of another program: it says something to everybody, or nothing (None), or hangs up (b"")."""
    visitors = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    visitor = server.accept()[0]
                except OSError:
                    return
                visitors.append(visitor)
                if answer is not None:
                    visitor.sendall(answer)
                    visitor.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"SSH-2", b"", None])
def test_another_program_on_the_port_is_refused(monkeypatch, answer):
    monkeypatch.setattr(endpoint, "ANSWER_SECONDS", 0.2 if answer is None else 60.0)
    with program(answer) as port:
        with pytest.raises(
            UserError, match=f"--flag 127.0.0.1:{port}: another program listens on this port"
        ):
            Endpoint("--flag", "127.0.0.1", port).require_usable()
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"localhost:{port}: another program listens"):
            join(timedelta(seconds=60))


@pytest.mark.parametrize("libuv", [True, False])
def test_a_store_of_torchs_and_a_free_port_are_fine(libuv):
    store = dist.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False, use_libuv=libuv)
    place = Endpoint("--flag", "127.0.0.1", store.port)
    place.require_usable()
    store.set("key", "it goes on")
    assert store.get("key") == b"it goes on"
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    Endpoint("--flag", "127.0.0.1", free).require_usable()


def test_a_port_that_is_taken_but_silent_is_refused_on_the_machine_that_opens_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        place = Endpoint("--flag", "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(
            UserError,
            match=r"cannot listen on port \d+ \(Address already in use\): give another port",
        ):
            place.require_usable()
        place.require_usable(hosted_here=False)


def unknown(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def silent(*_, **__):
    time.sleep(600)


@pytest.mark.parametrize(
    ("resolver", "reason"),
    [(unknown, "Name or service not known"), (silent, "no answer from the name server")],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_name_without_an_address_is_refused(monkeypatch, resolver, reason, rank):
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(endpoint, "RESOLVE_SECONDS", 0.1 if resolver is silent else 60.0)
    with pytest.raises(UserError) as refusal:
        Endpoint("--flag", "node-7", 29500).require_usable()
    assert str(refusal.value).startswith(
        f"--flag node-7:29500: the host name node-7 cannot be resolved ({reason}): give "
    )
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": rank,
        "MASTER_ADDR": "node-7",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the host name node-7 cannot be resolved"):
        join(timedelta(seconds=60))


def test_ranks_without_a_place_to_meet_are_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(
        UserError, match="WORLD_SIZE is 2, but MASTER_ADDR is not set: start with --nproc-per-node"
    ):
        join(timedelta(seconds=60))
