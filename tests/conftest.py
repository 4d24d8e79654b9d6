"""A real S3 server for any test, which can refuse connections and come back with its objects."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answer(status, code):
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


SLOW_DOWN = _answer("503 Slow Down", "SlowDown")
ACCESS_DENIED = _answer("403 Forbidden", "AccessDenied")


class FrontDoor:
    """Forwards a port to the server behind it, counts requests, and can be shut."""

    _REQUEST = re.compile(rb"(?:^|\r\n\r\n)(GET|HEAD|PUT|POST|DELETE) ([^ ]+) HTTP/1\.1\r\n")

    def __init__(self, target_port):
        self.port = free_port()
        self.requests = []
        self.fail_next = 0
        self.refuse_unsigned = False
        self._target_port = target_port
        self._open = set()
        self._lock = threading.Lock()
        self._listener = None
        self.start()

    def start(self):
        """Accept connections (again), on the same port."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self):
        """Refuse connections, and reset those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections, self._open = self._open, set()
        for one in connections:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def answer_unavailable(self, times):
        """Answer the next requests with 503 Slow Down."""
        self.fail_next = times

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target_port))
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._upstream, args=(client, server), daemon=True).start()
            threading.Thread(target=self._downstream, args=(server, client), daemon=True).start()

    def _upstream(self, client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                found = [(m.decode(), p.decode()) for m, p in self._REQUEST.findall(data)]
                self.requests += found
                answer = self._own_answer(data) if found else None
                if answer is not None:
                    client.sendall(answer)
                    client.close()
                    server.close()
                    return
                server.sendall(data)
        self._close(server)

    def _own_answer(self, request):
        if self.fail_next:
            self.fail_next -= 1
            return SLOW_DOWN
        # As AWS does; moto itself fails with 500 on them.
        if self.refuse_unsigned and b"authorization:" not in request.lower():
            return ACCESS_DENIED
        return None

    def _downstream(self, server, client):
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        self._close(client)

    @staticmethod
    def _close(one):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_WR)


class S3Server:
    """moto's S3 server behind a `FrontDoor`. Its objects live in memory, so only the door is ever shut."""

    def __init__(self):
        self._port = free_port()
        self._process = subprocess.Popen(
            [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()
        self.door = FrontDoor(self._port)
        self.endpoint = f"http://127.0.0.1:{self.door.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _wait(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/moto-api/", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, "the S3 server ended at once"
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.1)

    def create_bucket(self, name):
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return f"s3://{name}"

    def require_credentials(self, after):
        """From the `after`-th request on, only known credentials are let in (none are known); None lifts it."""
        count = 10**9 if after is None else after
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/moto-api/reset-auth",
            data=str(count).encode(),
            method="POST",
            headers={"Content-Type": "application/octet-stream"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    def stop(self):
        self.door.stop()

    def start(self):
        self.door.start()

    @contextlib.contextmanager
    def counting(self):
        """Collects the requests that arrive inside the block."""
        before = len(self.door.requests)
        seen = []
        yield seen
        seen += self.door.requests[before:]

    def close(self):
        self.door.stop()
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="session")
def _s3_server():
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3_server(_s3_server, monkeypatch):
    """A running S3 server; AWS_* point to it."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    return _s3_server


@pytest.fixture
def bucket(s3_server, request):
    """The URI of a fresh bucket."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    return s3_server.create_bucket(f"{name}-{time.monotonic_ns() % 10**9}")
