"""The process: configuration, start-up failures, overload, shutdown, and the other commands."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import time

import pytest

from headwater import BINARY, MODEL, clean_env, free_port, post_bytes, run, wait_until

SEA = [{"role": "user", "content": "Write one sentence about the sea."}]
ENDLESS = {"messages": SEA, "max_tokens": 4000, "ignore_eos": True}


class Streaming:
    """A streamed chat request that is read at the test's own pace."""

    def __init__(self, server, body):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.connection.request(
            "POST", "/v1/chat/completions", json.dumps({**body, "stream": True}),
            {"Content-Type": "application/json"},
        )
        self.response = self.connection.getresponse()
        self.first = self.response.readline()

    def rest(self):
        return self.first.decode() + self.response.read().decode()


def test_sigterm_lets_running_requests_finish(start):
    server = start()
    stream = Streaming(server, {**ENDLESS, "max_tokens": 300})
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz").status == 503, 2, "readiness gone")
    refused = server.post("/v1/chat/completions", ENDLESS)
    assert refused.status == 503 and refused.headers["Retry-After"]
    assert server.get("/livez").status == 200
    text = stream.rest()
    assert '"finish_reason":"length"' in text and text.rstrip().endswith("data: [DONE]")
    assert server.process.wait(timeout=20) == 0


def test_drain_timeout_bounds_the_wait(start):
    server = start("--drain-timeout", 1)
    stream = Streaming(server, ENDLESS)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    text = stream.rest()
    assert '"error"' in text and "[DONE]" not in text
    assert server.process.wait(timeout=20) == 0
    assert time.monotonic() - began < 10


def test_second_signal_ends_at_once(start):
    server = start()
    stream = Streaming(server, ENDLESS)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz").status == 503, 2, "readiness gone")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=3) != 0
    stream.connection.close()


def test_overload_is_refused_with_retry_after(start):
    server = start("--max-num-seqs", 1, "--max-queue", 1)
    first = Streaming(server, ENDLESS)
    waiting = server.connect()
    waiting.sendall(post_bytes("/v1/chat/completions", ENDLESS))
    wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1, what="one waiting")
    began = time.monotonic()
    refused = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a " * 100_000}]})
    assert time.monotonic() - began < 1
    assert refused.status == 429 and int(refused.headers["Retry-After"]) >= 1
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    first.connection.close()
    first.response.close()
    waiting.close()
    server.wait_idle()
    assert server.post("/v1/chat/completions", {"messages": SEA, "max_tokens": 2}).status == 200


def test_tiny_pool_preempts_but_serves_all(start):
    """The pool holds one and a half of these sequences; eight of them all get their answer."""
    bytes_per_token = 30 * 3 * 64 * 2 * 4
    server = start(
        "--kv-cache-bytes", 320 * bytes_per_token, "--max-model-len", 256, "--check-invariants", "true"
    )
    prompts = [f"Tell a long story about the number {i}. " * 4 for i in range(8)]

    def ask(prompt):
        return server.post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0, "max_tokens": 100, "ignore_eos": True}).json()

    alone = [ask(p)["choices"][0]["message"]["content"] for p in prompts[:2]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, prompts))
    assert [r["usage"]["completion_tokens"] for r in replies] == [100] * 8
    assert [r["choices"][0]["message"]["content"] for r in replies[:2]] == alone
    assert server.metric("vllm:num_preemptions_total") > 0
    server.wait_idle()


def test_window_policy_serves(start):
    server = start("--attention", "window", "--window-sinks", 4, "--window-recent", 64)
    prompt = "The tide comes in and the tide goes out. " * 60
    reply = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 20, "temperature": 0})
    assert reply.status == 200 and reply.json()["usage"]["completion_tokens"] > 0


def one_sentence(result):
    """What a failed start says: one line, no backtrace, and a failing status."""
    assert result.returncode not in (0, None) and result.returncode > 0, result
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "headwater:" in line]
    assert errors, result.stderr
    assert "terminate called" not in result.stderr
    return errors[-1]


def serve(path, *flags):
    return run("serve", "--model", path, "--port", free_port(), "--grpc-port", 0, *flags)


def test_missing_model(tmp_path):
    assert "nowhere.gguf" in one_sentence(serve(tmp_path / "nowhere.gguf"))


@pytest.mark.parametrize("size", [0, 3, 100, 5000, 3_000_000, 90_000_000])
def test_truncated_gguf(tmp_path, size):
    path = tmp_path / "cut.gguf"
    with open(MODEL, "rb") as source:
        path.write_bytes(source.read(size))
    assert "cut.gguf" in one_sentence(serve(path))


def test_gguf_with_absurd_counts(tmp_path):
    path = tmp_path / "absurd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62) + b"\0" * 64)
    assert "absurd.gguf" in one_sentence(serve(path))


def test_not_a_model(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear server,\n")
    assert "letter.txt" in one_sentence(serve(path))
    assert str(tmp_path.name) in one_sentence(serve(tmp_path))


def test_port_in_use(server):
    result = run("serve", "--model", MODEL, "--port", server.port, "--grpc-port", 0)
    assert str(server.port) in one_sentence(result)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--no-such-option", "1"], "no-such-option"),
        (["--max-num-seqs", "many"], "max-num-seqs"),
        (["--max-num-seqs", "-3"], "max-num-seqs"),
        (["--block-size", "17"], "block-size"),
        (["--attention", "telepathy"], "telepathy"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_options_are_named(flags, named):
    result = run("serve", "--model", MODEL, *flags)
    assert result.returncode > 0 and named in result.stderr


def test_without_a_gpu(start):
    env = clean_env(CUDA_VISIBLE_DEVICES="")  # hides those that are there
    result = run("serve", "--model", MODEL, "--device", "cuda", env=env)
    assert result.returncode == 2
    assert re.search("device cuda: (no usable GPU|built without CUDA)", one_sentence(result))
    server = start(env=env)
    assert re.search("running on the CPU.*(no usable GPU|built without CUDA)", server.log())
    assert re.search("device +CPU", server.log())


def test_configuration_later_over_earlier(tmp_path, start):
    file = tmp_path / "server.yaml"
    file.write_text("max-num-seqs: 11\nmax-queue: 12\nserved-model-name: from-file\n")
    env = clean_env(HEADWATER_MAX_QUEUE="13", HEADWATER_SERVED_MODEL_NAME="from-env")
    server = start("--config", file, "--served-model-name", "from-flag", env=env)
    assert server.get("/v1/models").json()["data"][0]["id"] == "from-flag"
    for name, value in (("max-num-seqs", 11), ("max-queue", 13), ("served-model-name", "from-flag")):
        assert re.search(rf"{name}\s*=\s*{value}\b", server.log()), server.log()


def test_descriptor_limit_is_raised_or_said(start):
    # The soft limit is below the connections asked for, the hard one is not: raised, nothing to say.
    enough = start("--max-connections", 300, prefix=["prlimit", "--nofile=128:512"])
    limits = pathlib.Path(f"/proc/{enough.process.pid}/limits").read_text()
    assert re.search(r"Max open files\s+512\s+512\b", limits), limits
    assert "fewer descriptors" not in enough.log()
    few = start("--max-connections", 1000, prefix=["prlimit", "--nofile=128:512"])
    assert re.search(r"fewer descriptors.*hard_limit=512 max_connections=1000", few.log()), few.log()


def test_unknown_configuration_is_refused(tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text("max-num-seq: 11\n")
    result = run("serve", "--config", file, "--model", MODEL)
    assert result.returncode > 0
    assert "max-num-seq" in result.stderr and "server.yaml" in result.stderr
    result = run("serve", "--model", MODEL, env=clean_env(HEADWATER_MAX_NUM_SEQ="1"))
    assert result.returncode > 0 and "HEADWATER_MAX_NUM_SEQ" in result.stderr


def test_help_teaches():
    top = run("--help")
    assert top.returncode == 0
    for command in ("serve", "chat", "bench", "inspect"):
        assert command in top.stdout
        assert run(command, "--help").returncode == 0
    assert "--max-num-seqs" in run("serve", "--help").stdout
    assert run("no-such-command").returncode > 0


def test_inspect():
    result = run("inspect", MODEL)
    assert result.returncode == 0
    for word in ("llama", "Q4_1", "8192"):
        assert word in result.stdout


def test_inspect_broken_file(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03")
    result = run("inspect", path)
    assert result.returncode > 0
    assert "broken.gguf" in result.stdout and "version" in result.stdout


def test_bench(server, tmp_path):
    output = tmp_path / "bench.json"
    result = run(
        "bench", "--url", server.url, "--num-prompts", 6, "--concurrency", 3, "--ignore-eos", "true",
        "--random-input-len", 20, "--random-output-len", 8, "--save-result", output,
    )
    assert result.returncode == 0, result.stderr
    numbers = json.loads(output.read_text())
    assert numbers["completed"] == 6 and numbers["total_output_tokens"] == 48
    assert numbers["mean_ttft_ms"] > 0 and numbers["output_throughput"] > 0
    assert "TTFT" in result.stdout and "TPOT" in result.stdout


def test_chat_command(server):
    result = subprocess.run(
        [BINARY, "chat", "--url", server.url], env=clean_env(), text=True, capture_output=True,
        input="Write one sentence about the sea.\n", timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) > 3


def test_resident_memory_is_file_kv_and_little_more(start):
    server = start()
    prompt = "The tide comes in and the tide goes out. " * 200
    server.post("/v1/completions", {"prompt": prompt, "max_tokens": 8})
    m = server.metrics()
    kv_bytes = sum(m[f'headwater:kv_bytes{{state="{state}"}}'] for state in ("held", "cached"))
    assert kv_bytes > 0
    bound = os.path.getsize(MODEL) + kv_bytes + 300e6
    assert m["process_resident_memory_bytes"] <= bound


def test_idle_server_sleeps(start):
    server = start()
    server.post("/v1/chat/completions", {"messages": SEA, "max_tokens": 8})

    def cpu_seconds():
        stat = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text()
        fields = stat.rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(1)
    before = cpu_seconds()
    time.sleep(4)
    assert cpu_seconds() - before <= 0.04, "an idle server takes at most 1 % of a core"
