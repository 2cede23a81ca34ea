"""HTTP as hostile or clumsy clients speak it, on raw sockets."""

import concurrent.futures
import json
import re
import socket
import struct
import time

import pytest

from headwater import post_bytes, read_all, sse_events, wait_until

SEA = [{"role": "user", "content": "Write one sentence about the sea."}]
SHORT = {"messages": SEA, "max_tokens": 3, "temperature": 0}
ENDLESS = {"messages": SEA, "max_tokens": 4000, "ignore_eos": True}


def statuses(raw):
    return [int(m) for m in re.findall(rb"HTTP/1\.1 (\d{3})", raw)]


def running(server):
    return server.metric("vllm:num_requests_running")


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/version", "/metrics"])
def test_probes(server, path):
    assert server.get(path).status == 200


def test_unknown_path_and_method(server):
    assert server.get("/v1/nothing").status == 404
    reply = server.get("/v1/chat/completions")
    assert reply.status == 405 and "POST" in reply.headers["Allow"]
    for r in (reply, server.get("/v1/nothing")):
        assert set(r.json()["error"]) >= {"message", "type", "param", "code"}


def test_request_id_is_echoed(server):
    reply = server.post("/v1/chat/completions", SHORT, {"X-Request-Id": "abc-123"})
    assert reply.headers["X-Request-Id"] == "abc-123"


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"messages": [}',
    b"\x00\x01\x02",
    b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"a":' * 20000 + b"1" + b"}" * 20000,
    b"[" * 200000,
    b'{"max_tokens": 1e999, "messages": [{"role":"user","content":"x"}]}',
    b'{"max_tokens": 99999999999999999999, "messages": [{"role":"user","content":"x"}]}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bad_bodies_are_refused_and_explained(server, body):
    reply = server.post("/v1/chat/completions", body)
    assert reply.status == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]


def test_oversized_body_is_refused_before_it_is_read(server):
    head = "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n"
    assert statuses(server.raw(head.encode())) == [413]


def test_oversized_header_is_refused(server):
    head = b"GET /health HTTP/1.1\r\nHost: t\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n"
    assert statuses(server.raw(head)) in ([431], [400])


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=range(6),
)
def test_junk_closes_the_connection(server, junk):
    answer = server.raw(junk)
    assert answer == b"" or statuses(answer)[0] in (400, 505)


def test_pipelined_requests_are_answered_in_order(server):
    first = json.dumps({"prompt": "one", "add_special_tokens": False}).encode()
    data = post_bytes("/tokenize", first) + b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n"
    data += b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    answer = server.raw(data)
    assert statuses(answer) == [200, 200, 200]
    assert answer.index(b'"tokens"') < answer.index(b'"object":"list"')


def test_chunked_request_body(server):
    body = json.dumps(SHORT).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 9]), body[i:i + 9])
                      for i in range(0, len(body), 9))
    assert statuses(server.raw(head + chunks + b"0\r\n\r\n")) == [200]


def test_expect_continue(server):
    body = json.dumps(SHORT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n"
    with server.connect() as s:
        s.sendall((head + "Expect: 100-continue\r\nConnection: close\r\n\r\n").encode())
        assert b"100" in s.recv(100)
        s.sendall(body)
        assert statuses(read_all(s)) == [200]


def test_body_that_dribbles_in(server):
    data = post_bytes("/v1/chat/completions", SHORT, close=True)
    with server.connect() as s:
        for i in range(0, len(data), 16):
            s.sendall(data[i:i + 16])
            time.sleep(0.01)
        assert statuses(read_all(s)) == [200]


def test_slow_clients_do_not_hold_up_others(server):
    sockets = [server.connect() for _ in range(200)]
    for s in sockets:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-")
    start = time.monotonic()
    assert server.post("/v1/chat/completions", SHORT).status == 200
    assert time.monotonic() - start < 10
    for s in sockets:
        s.close()


def test_header_timeout(start):
    server = start("--header-timeout", 1)
    began = time.monotonic()
    answer = server.raw(b"GET /health HTTP/1.1\r\nHo")
    assert answer == b"" or statuses(answer) == [408]
    assert time.monotonic() - began < 10


def test_keep_alive(server):
    with server.connect() as s:
        for _ in range(3):
            s.sendall(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
            assert s.recv(65536).startswith(b"HTTP/1.1 200")


def test_many_open_streams(server):
    """More streams than run at once: the others wait, all of them end."""
    body = {"messages": SEA, "max_tokens": 8, "ignore_eos": True, "stream": True}
    sockets = [server.connect(timeout=120) for _ in range(150)]
    for s in sockets:
        s.sendall(post_bytes("/v1/chat/completions", body, close=True))
    for s in sockets:
        answer = read_all(s)
        assert statuses(answer) == [200] and b"data: [DONE]" in answer
        s.close()


def leave_by_close(s):
    s.close()


def leave_by_reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_reset])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages(server, leave, stream):
    s = server.connect()
    s.sendall(post_bytes("/v1/chat/completions", {**ENDLESS, "stream": stream}))
    wait_until(lambda: running(server) == 1, what="the request running")
    assert server.metric("vllm:kv_cache_usage_perc") > 0
    leave(s)
    server.wait_idle(timeout=3)


def test_cancelled_by_the_sdk(server, client, model):
    stream = client.chat.completions.create(
        model=model, messages=SEA, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    for _ in range(3):
        next(chunks)
    wait_until(lambda: running(server) == 1, what="the request running")
    before = server.metric('vllm:request_success_total{finished_reason="abort"}')
    stream.close()
    server.wait_idle(timeout=3)
    assert server.metric('vllm:request_success_total{finished_reason="abort"}') == before + 1


def test_half_closed_client_is_served_or_dropped_but_never_kept(server):
    with server.connect() as s:
        s.sendall(post_bytes("/v1/chat/completions", SHORT, close=True))
        s.shutdown(socket.SHUT_WR)
        answer = read_all(s)
    assert answer == b"" or statuses(answer) == [200]


def test_a_client_that_does_not_read_is_dropped(start):
    server = start("--max-send-buffer-bytes", 65536, "--write-timeout", 2)
    body = {**ENDLESS, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(("127.0.0.1", server.port))
    s.sendall(post_bytes("/v1/chat/completions", body))
    wait_until(lambda: running(server) > 0, what="the request running")
    wait_until(lambda: running(server) == 0, 60, "the request dropped")
    s.close()
    server.wait_idle()


def test_metrics_are_exposition_format_and_move(server, client, model):
    def moved(name):
        return server.metrics()[name] - before[name]

    before = server.metrics()
    reply = client.chat.completions.create(model=model, messages=SEA, max_tokens=5, temperature=0)
    # The snapshot is taken after a step's tokens went out.
    wait_until(lambda: moved("vllm:generation_tokens_total") == 5, what="the last token counted")
    assert moved("vllm:prefix_cache_queries_total") == reply.usage.prompt_tokens
    assert moved("vllm:time_to_first_token_seconds_count") == 1
    assert moved("vllm:e2e_request_latency_seconds_count") == 1
    assert moved('vllm:request_success_total{finished_reason="length"}') == 1
    assert moved('vllm:time_to_first_token_seconds_bucket{le="+Inf"}') == 1
    assert any(name.startswith("vllm:cache_config_info") for name in before)
    for line in server.get("/metrics").body.decode().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r'[a-zA-Z_:][\w:]*(\{([a-z_]+="[^"]*",?)*\})? [-+.\w]+', line), line


def test_error_after_a_stream_began_is_an_event(start):
    """A request that runs out of time mid-stream says so, and sends no [DONE]."""
    server = start("--request-timeout", 1)
    reply = server.post("/v1/chat/completions", {**ENDLESS, "stream": True})
    assert reply.status == 200
    last = json.loads(sse_events(reply.body.decode())[-1])
    assert "error" in last and last["error"]["message"]


def test_api_key(start):
    server = start("--api-key", "secret")
    assert server.get("/health").status == 200
    reply = server.post("/v1/chat/completions", SHORT)
    assert reply.status == 401 and reply.json()["error"]["type"] == "authentication_error"
    wrong = {"Authorization": "Bearer public"}
    assert server.post("/v1/chat/completions", SHORT, wrong).status == 401
    right = {"Authorization": "Bearer secret"}
    assert server.post("/v1/chat/completions", SHORT, right).status == 200
    assert "secret" not in server.log()


def test_storm_of_connections_that_come_and_go(server):
    def visit(i):
        s = server.connect()
        if i % 3 == 0:
            s.sendall(post_bytes("/v1/chat/completions", {**ENDLESS, "stream": True}))
        elif i % 3 == 1:
            s.sendall(b"GET /metr")
        leave_by_reset(s)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(visit, range(300)))
    server.wait_idle(timeout=20)
    assert server.post("/v1/chat/completions", SHORT).status == 200
