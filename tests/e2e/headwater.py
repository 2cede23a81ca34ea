"""Runs the server under test and speaks plain HTTP to it; the tests' only helper module."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("HEADWATER_BIN", str(ROOT / "build/release/bin/headwater"))
MODEL = os.environ.get(
    "HEADWATER_SMOLLM2", str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
)
START_TIMEOUT_S = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def clean_env(**extra):
    """The environment without variables that would configure the server."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    return {**env, **extra}


def run(*args, env=None, timeout=60):
    """Runs one headwater command to its end."""
    return subprocess.run(
        [BINARY, *map(str, args)],
        env=env or clean_env(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def wait_until(condition, timeout=10.0, what="the condition"):
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not hold within {timeout} s"
        time.sleep(0.02)


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self):
        return json.loads(self.body)


class Server:
    """A server process on free ports of 127.0.0.1; a context manager. prefix: a command before it."""

    def __init__(self, log_path, *flags, env=None, prefix=(), model=None):
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = pathlib.Path(log_path)
        command = [*prefix, BINARY, "serve", "--model", model or MODEL, "--port", str(self.port)]
        command += ["--grpc-port", str(self.grpc_port), *map(str, flags)]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command, env=env or clean_env(), stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self):
        try:
            wait_until(self.is_ready, START_TIMEOUT_S, "readiness")
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=40)
        finally:
            self.process.kill()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def is_ready(self):
        assert self.process.poll() is None, f"the server ended:\n{self.log()}"
        with contextlib.suppress(OSError):
            return self.get("/readyz").status == 200

    def request(self, method, path, body=None, headers=None, timeout=120):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, headers=None):
        """Posts JSON; a bytes body goes out as it is."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request(
            "POST", path, data, {"Content-Type": "application/json", **(headers or {})}
        )

    def connect(self, timeout=30):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(self, data, timeout=30):
        """Sends bytes on a new connection and reads until the server closes it."""
        with self.connect(timeout) as s:
            s.sendall(data)
            return read_all(s)

    def metrics(self):
        """{'name{label="x"}': value}; the labels every line carries are left out."""
        values = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r'(model_name|engine)="[^"]*",?', "", name)
                values[name.replace(",}", "}").replace("{}", "")] = float(value)
        return values

    def metric(self, name):
        return self.metrics()[name]

    def wait_idle(self, timeout=5.0):
        """Until nothing runs, waits or holds pages."""

        def idle():
            m = self.metrics()
            return (
                m["vllm:num_requests_running"] == 0
                and m["vllm:num_requests_waiting"] == 0
                and m["vllm:kv_cache_usage_perc"] == 0
            )

        wait_until(idle, timeout, "an idle engine that holds no pages")


def read_all(s):
    chunks = []
    while True:
        try:
            chunk = s.recv(65536)
        except ConnectionResetError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)


def post_bytes(path, body, *, close=False, extra=""):
    """A POST request as it goes over the wire."""
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n{extra}"
    head += "Connection: close\r\n" if close else ""
    return head.encode() + b"\r\n" + data


def sse_events(text):
    """The data of each server-sent event, [DONE] included; comments are left out."""
    blocks = [b for b in text.replace("\r\n", "\n").split("\n\n") if b.strip()]
    lines = [line for b in blocks for line in b.split("\n") if not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), lines
    return [line[len("data: "):] for line in lines]
