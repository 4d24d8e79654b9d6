"""The development cluster's coordinator and its enrolment of clinics, as the compose file starts them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fedvox.local_cluster import end_session, free_ports
from fedvox_federation.credentials import make_certificates

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def test_the_superlink_of_the_compose_file_enrols_each_clinic_once(tmp_path):
    make_certificates(tmp_path / "tls", ["127.0.0.1"], days=1)
    (port,) = free_ports(1)
    words = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text())["services"]["superlink"][
        "command"
    ]
    command = [
        word.replace("/tls", str(tmp_path / "tls")).replace("/var/lib/fedvox", str(tmp_path)).replace("8000", str(port))
        .replace("0.0.0.0", "127.0.0.1") for word in words
    ]  # fmt: skip
    for clinic in ("nord", "sued"):
        (tmp_path / "clinics" / clinic).mkdir(parents=True)
    environment = {
        **os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "SUPERLINK": f"127.0.0.1:{port}",
        "TLS": str(tmp_path / "tls"), "CLINICS": str(tmp_path / "clinics"),
    }  # fmt: skip
    log = (tmp_path / "superlink.log").open("w")
    superlink = subprocess.Popen(
        [BIN / command[0], *command[1:]], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        enrol = ["bash", ROOT / "deploy/compose/enrol.sh", "nord", "sued"]
        deadline = time.monotonic() + 120
        # compose starts it again until the SuperLink answers, and so do we
        while (done := subprocess.run(enrol, env=environment, capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, done.stdout + done.stderr + Path(log.name).read_text()
            time.sleep(0.5)
        listed = subprocess.run(
            [BIN / "flwr", "supernode", "list", "dev"], env=environment, capture_output=True, text=True
        ).stdout
        assert listed.count("registered") == 2, listed
        keys = [(tmp_path / "clinics" / clinic / "node").read_bytes() for clinic in ("nord", "sued")]
        subprocess.run(enrol, env=environment, check=True)
        assert [(tmp_path / "clinics" / c / "node").read_bytes() for c in ("nord", "sued")] == keys
    finally:
        end_session(superlink)
        log.close()
