"""A real S3 server on this machine in, an empty bucket for each test out; s3fs speaks HTTP to it, on any rank."""

import logging
import os
from contextlib import contextmanager

import fsspec
import pytest

BUCKET = "s3://bucket"


@contextmanager
def server():
    """Its address. Skips where moto or s3fs are not installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'megascratch[dev]'")
    moto = pytest.importorskip(
        "moto.server", reason="moto is not installed: pip install 'megascratch[dev]'"
    )
    running = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    # a line for each request that found nothing
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running.start()
    try:
        yield "http://{}:{}".format(*running.get_host_and_port())
    finally:
        running.stop()


def speak_to(address):
    """The variables with which this process, and those that it starts, reach the server."""
    names = {
        "ENDPOINT_URL": address,
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "us-east-1",
    }
    os.environ.update({f"AWS_{name}": value for name, value in names.items()})
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def be_silent():
    """As before."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]


def emptied():
    """The client, once there is an empty bucket."""
    client = fsspec.filesystem("s3", use_listings_cache=False)
    if client.exists(BUCKET):
        client.rm(BUCKET, recursive=True)
    client.mkdir(BUCKET)
    return client
