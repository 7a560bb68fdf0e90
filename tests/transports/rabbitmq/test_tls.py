"""TLS to a real broker: verified always, by a private CA where one is given."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventpipe import ConnectError, EventPipe, Queue
from eventpipe.testing import RabbitNode
from eventpipe.testing.node import _free_ports

OPENSSL = """
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca
openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server
printf 'subjectAltName=DNS:localhost' > ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out expired.pem -days 0 -extfile ext
openssl req -newkey rsa:2048 -nodes -keyout client.key -out client.csr -subj /CN=client
openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out client.pem -days 2
chmod 644 *.key
"""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, Path]]:
    """A node that serves TLS on a port and asks for client certificates; and the folder of the certificates."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["sh", "-ec", OPENSSL], cwd=folder, check=True, capture_output=True)
    (port,) = _free_ports(1)
    config = f"""
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""
    with RabbitNode.start(config=config, owner=os.getpid()) as node:
        yield port, node.facts["port"], folder


@pytest.mark.fault("F24")
async def test_tls_is_verified(tls: tuple[int, int, Path]) -> None:
    """It works with the CA and a client certificate; without either, by another name, or on the plain port it fails."""
    port, plain, folder = tls
    given = f"cacertfile={folder}/ca.pem&certfile={folder}/client.pem&keyfile={folder}/client.key"
    pipe = EventPipe(f"amqps://localhost:{port}?{given}", name="tls")
    publisher = pipe.publisher(int, to=Queue("q"))
    async with pipe:
        await publisher.publish(1)
    for url, text in (
        (f"amqps://localhost:{port}", "TLS failed"),
        (f"amqps://127.0.0.1:{port}?{given}", "TLS failed"),
        (f"amqps://localhost:{port}?cacertfile={folder}/ca.pem", "amqps://guest@localhost"),
        (f"amqps://localhost:{plain}?{given}", "TLS failed"),
    ):
        with pytest.raises(ConnectError, match=text):
            async with EventPipe(url, name="tls"):
                pass


@pytest.mark.fault("F24")
async def test_an_expired_certificate(tls: tuple[int, int, Path]) -> None:
    """It is refused before anything is said, and the error says why."""
    _, _, folder = tls
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "expired.pem", folder / "server.key")
    said: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(await reader.read(1))
        writer.close()

    await asyncio.sleep(1.1)  # valid for no whole second
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError, match="expired"):
            async with EventPipe(f"amqps://localhost:{port}?cacertfile={folder}/ca.pem", name="tls"):
                raise AssertionError("it can't have been entered")
    assert not said
