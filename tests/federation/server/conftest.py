"""A small model, honest and dishonest replies to it, and a grid of clinics that live in this process."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fedvox.config import validate
from fedvox_federation.config import FederationConfig
from fedvox_federation.privacy.noise_policy import NO_PRIVACY
from fedvox_federation.protocol import ClinicReply, RoundOrder, arrays_sha256, decode_order, encode_reply
from fedvox_federation.server.checks import ReplyChecker
from fedvox_federation.server.standings import ProfileRegistry

ARRAYS = {"w": np.zeros((4, 5), np.float32), "b": np.float32([1.0, -1.0, 0.5])}
NONE = {"name": "none", "options": {"acknowledge": NO_PRIVACY}}


def make_config(**sections):
    values = {
        "name": "study",
        "rounds": 3,
        "training": {"steps": 10, "lr": 0.01},
        "privacy": {"expected_batch": 2.0, "delta": 1e-3},
        "server": {"deadline_s": 2.0, "connect_timeout_s": 1.0},
    }
    for name, value in sections.items():
        if isinstance(value, dict):
            values[name] = {**values.get(name, {}), **value}
        else:
            values[name] = value
    return validate(FederationConfig, values, source="test")


def honest(order, model, number=1, *, noise=3.0, patients=20, **changes):
    """What hospital `number` would answer: its own small step in a random direction."""
    rng = np.random.default_rng([number, order.round_number])
    moved = {name: (v + rng.normal(0, 0.01, v.shape)).astype(np.float32) for name, v in sorted(model.items())}
    reply = ClinicReply(
        clinic=f"hospital_{number:02d}", run=order.run, round_number=order.round_number, arrays=moved,
        patients=patients, steps=10, noise_multiplier=noise, sample_rate=2.0 / max(patients, 4), delta=1e-3,
        epsilon_spent=0.5 * order.round_number, score=1.0, tier=4, loss=1.0 / order.round_number, dice_before=0.5,
        dice_after=0.5 + 0.05 * order.round_number, seconds=1.5,
    )  # fmt: skip
    reply = dataclasses.replace(reply, **changes)
    if reply.arrays and "update_sha256" not in changes:
        reply = dataclasses.replace(reply, update_sha256=arrays_sha256(reply.arrays))
    return reply


class FakeGrid:
    """Clinics as functions: node -> (order, arrays) -> reply, or None for none, or an exception for Flower's error."""

    def __init__(self, clinics, names=None):
        self.clinics = dict(clinics)
        self.names = dict(names or {})  # what a node that is asked says it is
        self.introduced = []
        self.asked = []
        self.sent = []
        self._waiting = {}  # message -> reply that has not been fetched

    def get_node_ids(self):
        return list(self.clinics)

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, public_key=b"") for node in self.clinics]

    def pull_messages(self, message_ids):
        return [self._waiting.pop(one) for one in list(self._waiting) if one in message_ids]

    def push_messages(self, messages):
        messages = list(messages)
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"m{len(self.asked)}-{len(self.introduced)}-{number}"
        for reply in self._replies(messages):
            self._waiting[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in messages]

    def _replies(self, messages):
        from flwr.app import Error, Message

        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            order, arrays = decode_order(message.content)
            if message.metadata.message_type == "query":
                self.introduced.append(node)
                name = self.names.get(node, f"hospital_{node:02d}")
                if name is not None:
                    reply = ClinicReply(name, order.run, order.round_number)
                    replies.append(Message(content=encode_reply(reply), reply_to=message))
                continue
            self.asked.append((order.round_number, node))
            self.sent.append((order, arrays, message.metadata.ttl))
            try:
                reply = self.clinics[node](order, arrays)
            except RuntimeError as error:
                replies.append(Message(Error(code=2, reason=str(error)), reply_to=message))
                continue
            if reply is not None:
                content = encode_reply(reply) if isinstance(reply, ClinicReply) else reply
                replies.append(Message(content=content, reply_to=message))
        return replies


@pytest.fixture
def flower_task(monkeypatch):
    """Flower makes messages only inside a run of its own."""
    from flwr.supercore.task_identity import TaskIdentity

    for name, value in (("_task_id", 1), ("_run_id", 1), ("_node_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


@pytest.fixture
def fed(flower_task):
    """Everything above by name."""

    def checker(config=None, **more):
        config = config or make_config()
        return ReplyChecker(config, ProfileRegistry(config.clinics.profiles), simulation=True, **more)

    def order(round_number=1, config=None):
        config = config or make_config()
        return RoundOrder(config.name, round_number, config.rounds, config.sha256, "base")

    return SimpleNamespace(
        arrays=ARRAYS,
        config=make_config,
        honest=honest,
        grid=FakeGrid,
        checker=checker,
        order=order,
        no_noise=NONE,
    )
