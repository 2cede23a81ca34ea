#!/usr/bin/env python3
"""From the start of `headwater serve` to the first token of a stream, the file in the page cache:

    python3 tests/bench/random_gguf.py /dev/shm/random-8b.gguf
    python3 tests/bench/first_token.py --model /dev/shm/random-8b.gguf -- --device cuda

What follows -- goes to the server. Standard library only.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import time

PORT = 18480


def first_event():
    """Seconds are the caller's; None while the server is not ready."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = {"model": "it", "prompt": [300, 301, 302, 303], "max_tokens": 16, "stream": True,
            "ignore_eos": True, "temperature": 0}
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status == 503:
            return None
        if response.status != 200:
            raise SystemExit(f"HTTP {response.status}: {response.read().decode()}")
        return next(line for line in response if line.startswith(b"data: {"))
    except (ConnectionError, http.client.HTTPException):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--binary", default=os.environ.get("HEADWATER_BIN", "build/release/bin/headwater"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of headwater serve, behind --")
    args = parser.parse_args()
    with open(args.model, "rb", buffering=0) as file:
        while file.read(64 << 20):
            pass
    for _ in range(args.rounds):
        begin = time.perf_counter()
        server = subprocess.Popen(
            [args.binary, "serve", "--model", args.model, "--port", str(PORT), "--grpc-port", "0",
             "--served-model-name", "it", *args.options])
        try:
            while first_event() is None:
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                time.sleep(0.005)
            print(f"first token after {time.perf_counter() - begin:.2f} s", flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    main()
