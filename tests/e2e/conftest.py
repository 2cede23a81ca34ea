import openai
import pytest

from headwater import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The server that tests share. Whatever a test did, nothing of it may be left running.

    Deterministic, since they compare replies with each other; a CPU is so anyway.
    """
    log = tmp_path_factory.mktemp("server") / "server.log"
    with Server(log, "--check-invariants", "true", "--deterministic", "true") as running:
        yield running
    assert running.process.returncode == 0, running.log()


@pytest.fixture(autouse=True)
def idle_afterwards(request):
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").wait_idle()


@pytest.fixture
def start(tmp_path):
    """start(*flags, env=..., prefix=..., model=...): further servers, stopped when the test ends."""
    servers = []

    def start_server(*flags, **options):
        log = tmp_path / f"server{len(servers)}.log"
        running = Server(log, *flags, **options)
        servers.append(running)
        return running.__enter__()

    yield start_server
    for running in servers:
        running.__exit__(None, None, None)


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
