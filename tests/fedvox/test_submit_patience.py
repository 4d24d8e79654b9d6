"""Following a job through a network that blinks."""

import pytest
import requests

from fedvox.commands import submit
from fedvox.errors import RunError


class Server:
    """Answers the n-th question; drops the connections before."""

    def __init__(self, answers_at: int) -> None:
        self.asked = 0
        self.answers_at = answers_at

    def __call__(self) -> str:
        self.asked += 1
        if self.asked < self.answers_at:
            raise requests.exceptions.ConnectionError("connection refused")
        return "RUNNING"


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(submit.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(submit.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))


def test_a_server_that_comes_back_within_the_time_is_asked_again() -> None:
    server = Server(answers_at=20)
    assert submit._patiently(server) == "RUNNING"
    assert server.asked == 20


def test_a_server_that_stays_away_is_one_error_that_says_the_job_goes_on() -> None:
    with pytest.raises(RunError, match="not answered for 120 s") as caught:
        submit._patiently(Server(answers_at=10_000))
    assert "goes on" in caught.value.remedy


def test_a_mistake_is_not_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        submit._patiently(lambda: str(1 / 0))
