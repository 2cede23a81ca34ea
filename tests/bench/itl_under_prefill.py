"""Do streams keep their pace while a long prompt is prefilled? Against a running server:

    python3 tests/bench/itl_under_prefill.py --url http://127.0.0.1:8000 --prompt-tokens 6000

Decodes with `--streams` streams alone, then again with one long prompt arriving; prints the gaps
between tokens of both phases and their ratio at p50 and p99. Standard library only.
"""

import argparse
import http.client
import json
import random
import threading
import time
from urllib.parse import urlparse


def post(url, body):
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"HTTP {response.status}: {response.read().decode()}")
    return response


def model_of(url):
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    connection.request("GET", "/v1/models")
    return json.loads(connection.getresponse().read())["data"][0]["id"]


def stream(url, model, prompt, max_tokens, times, stop):
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": True,
            "ignore_eos": True, "temperature": 0}
    response = post(url, body)
    for line in response:
        if stop.is_set():
            break
        if line.startswith(b"data: {"):
            times.append(time.perf_counter())
    response.close()


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--context", type=int, default=32, help="tokens of each stream's prompt")
    parser.add_argument("--prompt-tokens", type=int, default=6000)
    parser.add_argument("--idle-seconds", type=float, default=5.0)
    args = parser.parse_args()
    url = urlparse(args.url)
    model = model_of(url)
    rng = random.Random(1)
    ids = lambda n: [rng.randrange(1000, 20000) for _ in range(n)]

    stop = threading.Event()
    times = [[] for _ in range(args.streams)]
    threads = [threading.Thread(target=stream, args=(url, model, ids(args.context), 4000, t, stop), daemon=True)
               for t in times]
    for thread in threads:
        thread.start()
    while any(len(t) < 20 for t in times):
        time.sleep(0.05)
    begin = time.perf_counter()
    time.sleep(args.idle_seconds)
    middle = time.perf_counter()
    first = []
    stream(url, model, ids(args.prompt_tokens), 1, first, threading.Event())
    end = time.perf_counter()
    stop.set()

    def gaps(low, high):
        return [b - a for t in times for a, b in zip(t, t[1:]) if low <= a and b <= high]

    idle, busy = gaps(begin, middle), gaps(middle, end)
    print(f"{args.streams} streams behind {args.context} tokens, a prompt of {args.prompt_tokens} tokens: "
          f"TTFT {first[0] - middle:.2f} s")
    print("gap between tokens, ms   p50      p99      max    count")
    for name, values in (("alone", idle), ("with the prompt", busy)):
        print(f"{name:20} {1e3 * percentile(values, .5):8.1f} {1e3 * percentile(values, .99):8.1f}"
              f" {1e3 * max(values):8.1f} {len(values):8d}")
    print(f"ratio                {percentile(busy, .5) / percentile(idle, .5):8.2f}"
          f" {percentile(busy, .99) / percentile(idle, .99):8.2f}")


if __name__ == "__main__":
    main()
