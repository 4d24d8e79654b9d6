"""The Flower ClientApp's body: a message in, a message out, and nothing raised.

    node configuration                        the clinic is
    clinic="/etc/fedvox/clinic.yaml"          real, as its own file says
    partition-id=0 (set by a simulation)      hospital 0 of the federation's configuration

`federation/flower_entry.py` holds the app itself, since Flower reads that file alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedvox.config import load_config
from fedvox.errors import ConfigError
from fedvox.training.config import expand
from fedvox_federation.bundle import bundle_sha256, is_approved, read_approvals
from fedvox_federation.client.clinic import Clinic, refused, take_part
from fedvox_federation.client.refusals import Refused
from fedvox_federation.client.sites import (
    presented_attestation,
    real_clinic,
    simulated_clinic,
    simulated_name,
)
from fedvox_federation.config import ClinicConfig, approvals_file, from_run_config
from fedvox_federation.logs import show_log
from fedvox_federation.protocol import (
    BadMessage,
    ClinicReply,
    Refusal,
    decode_order,
    encode_reply,
)

if TYPE_CHECKING:
    from flwr.app import Context, Message

log = logging.getLogger(__name__)


def answer(message: Message, context: Context, app_folder: Path) -> Message:
    """Take part in the round that a message asks for.

    Args:
        message: of the server.
        context: of the SuperNode.
        app_folder: root of the app bundle.
    """
    from flwr.app import Message as FlowerMessage

    reply = _reply(message, context, app_folder)
    return FlowerMessage(content=encode_reply(reply), reply_to=message)


def introduce(message: Message, context: Context, app_folder: Path) -> Message:
    """Say which clinic this SuperNode is, with its attestation, and nothing else: SCAFFOLD has an order for each.

    Args:
        message: of the server, with the round's order.
        context: of the SuperNode.
        app_folder: root of the app bundle.
    """
    from flwr.app import Message as FlowerMessage

    reply = ClinicReply(clinic=_fallback_name(context), run="", round_number=0)
    try:
        order, _ = decode_order(message.content)
        reply = replace(reply, run=order.run, round_number=order.round_number)
        if (own := _own_file(context)) is not None:
            reply = replace(reply, clinic=own.name, attestation=presented_attestation(own))
        else:
            reply = replace(reply, clinic=_simulated_name(context, app_folder))
    except Exception as error:  # noqa: BLE001 - whatever it is, its text must not leave
        reply = replace(reply, refusal=refused(error, reply.round_number))
    return FlowerMessage(content=encode_reply(reply), reply_to=message)


def _simulated_name(context: Context, app_folder: Path) -> str:
    if (number := context.node_config.get("partition-id")) is not None:
        return simulated_name(from_run_config(context.run_config, app_folder), int(str(number)))
    raise _nobody()


def _nobody() -> ConfigError:
    return ConfigError(
        "this SuperNode does not know which clinic it is",
        """Start it with --node-config 'clinic="/etc/fedvox/clinic.yaml"'.""",
    )


def _reply(message: Message, context: Context, app_folder: Path) -> ClinicReply:
    nobody = ClinicReply(clinic=_fallback_name(context), run="", round_number=0)
    try:
        order, arrays = decode_order(message.content)
    except BadMessage as error:
        return replace(nobody, refusal=refused(error, 0))
    nobody = replace(nobody, run=order.run, round_number=order.round_number)
    try:
        if (own := _own_file(context)) is not None:
            show_log()  # of simulated hospitals, a hundred to a process, nobody reads it
            nobody = replace(nobody, clinic=own.name)
        clinic = open_clinic(context, app_folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, its text must not leave
        return replace(nobody, refusal=refused(error, order.round_number))
    return take_part(arrays, order, clinic)


def open_clinic(context: Context, app_folder: Path) -> Clinic:
    """Whoever this SuperNode is.

    Raises:
        Refused: the clinic has not approved this code.
        FedvoxError: a configuration, store or checkpoint cannot be used.
    """
    node = context.node_config
    if (own := _own_file(context)) is not None:
        running = bundle_sha256(app_folder)
        _require_approved(own, running)
        _require_inside(str(context.run_config.get("config", "")), app_folder)
        return real_clinic(from_run_config(context.run_config, app_folder), own, bundle_sha256=running)
    if (number := node.get("partition-id")) is not None:
        config = from_run_config(context.run_config, app_folder)
        return simulated_clinic(config, int(str(number)), bundle_sha256=_simulated_bundle(app_folder))
    raise _nobody()


def _own_file(context: Context) -> ClinicConfig | None:
    """What a real clinic says about itself; None for a simulated one."""
    named = context.node_config.get("clinic")
    return None if named is None else load_config(ClinicConfig, expand(str(named)))


@lru_cache(maxsize=1)
def _simulated_bundle(app_folder: Path) -> str:
    """Once for a process: in a simulation the code is the caller's own."""
    return bundle_sha256(app_folder)


def _require_approved(own: ClinicConfig, running: str) -> None:
    path = approvals_file(own)
    if not is_approved(path, running):
        known = ", ".join(one.sha256 for one in read_approvals(path)) or "none"
        raise Refused(
            Refusal.BUNDLE_NOT_APPROVED,
            f"the app that was sent has hash {running}; this clinic approved {known}",
            "Read what has changed, then: fedvox-federation bundle approve.",
        )


def _require_inside(named: str, app_folder: Path) -> None:
    """The study's file is part of what was approved; the server must not point at another on the clinic's disk."""
    if not (app_folder / named).resolve().is_relative_to(app_folder.resolve()):
        raise Refused(
            Refusal.CONFIG,
            f"the run configuration names {named!r}, outside of the app",
            "Put it into the app.",
        )


def _fallback_name(context: Context) -> str:
    number = context.node_config.get("partition-id")
    return f"node {context.node_id}" if number is None else f"partition {number}"
