"""Object stores of this machine: moto answers as S3 does, gcp-storage-emulator as Google Cloud Storage; real HTTP on free ports.

Each is started when it is first asked for and serves until `close`, with one bucket. The libraries are told by the environment, as a user
tells them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import fsspec
import pytest

BUCKET = "bucket"
SECRET = "no-word-of-it"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET}

_NOBODY = {  # whatever this machine knows of real accounts
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_running = ExitStack()


@cache
def s3_server() -> str:
    """Its address; s3fs is told of it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _running.callback(server.stop)
    host, port = server.get_host_and_port()
    _running.enter_context(s3_environment(f"http://{host}:{port}", **CREDENTIALS))
    fsspec.filesystem("s3").mkdir(BUCKET)
    return f"http://{host}:{port}"


@cache
def gs_server() -> str:
    """Its address; gcsfs is told of it."""
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    _running.enter_context(create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET))
    _running.enter_context(gs_environment(f"http://127.0.0.1:{port}"))
    return f"http://127.0.0.1:{port}"


def close() -> None:
    """Ends what runs."""
    _running.close()
    s3_server.cache_clear()
    gs_server.cache_clear()


@contextmanager
def s3_environment(url: str, **credentials: str) -> Iterator[None]:
    """What s3fs reads when it opens a session."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name in CREDENTIALS:
            patch.delenv(name, raising=False)
        for name, value in (_NOBODY | {"AWS_ENDPOINT_URL": url} | credentials).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def gs_environment(url: str) -> Iterator[None]:
    """What gcsfs reads when it opens a session."""
    import gcsfs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks an interface of which the emulator knows nothing
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield
        gcsfs.GCSFileSystem.clear_instance_cache()
