"""Keys and certificates: what they allow, who may read them, and that nothing is overwritten."""

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedvox.errors import ConfigError, StorageError
from fedvox_compliance.keys import node_key_fingerprint
from fedvox_federation.credentials import make_certificates, make_node_key


def verifier(authority, name):
    store = Store([x509.load_pem_x509_certificate(authority.read_bytes())])
    return PolicyBuilder().store(store).build_server_verifier(x509.DNSName(name))


def test_the_superlinks_certificate_holds_for_its_names_and_no_other(tmp_path):
    authority, certificate, key = make_certificates(tmp_path / "tls", ["fl.example.org", "10.0.0.5"])
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    verifier(authority, "fl.example.org").verify(found, [])
    with pytest.raises(VerificationError):
        verifier(authority, "evil.example.org").verify(found, [])
    other, _, _ = make_certificates(tmp_path / "other", ["fl.example.org"])
    with pytest.raises(VerificationError):
        verifier(other, "fl.example.org").verify(found, [])
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


def test_secrets_are_the_owners_alone_and_nothing_is_overwritten(tmp_path):
    make_certificates(tmp_path, ["localhost"])
    make_node_key(tmp_path / "node")
    for name in ("ca.key", "superlink.key", "node"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StorageError, match="exists already"):
        make_certificates(tmp_path, ["localhost"])
    with pytest.raises(StorageError, match="exists already"):
        make_node_key(tmp_path / "node")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_node_key_is_of_the_kind_that_flower_reads(tmp_path):
    public = load_ssh_public_key(make_node_key(tmp_path / "node").read_bytes())
    private = load_ssh_private_key((tmp_path / "node").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public


def test_a_certificate_without_a_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="names"):
        make_certificates(tmp_path, [])


@pytest.mark.parametrize(
    "arguments", [["--host", "a b"], ["--host", ""], ["--host", "a", "--study", "x" * 60]]
)
def test_names_that_no_certificate_can_hold_are_refused(tmp_path, federation_command, arguments):
    assert federation_command("certificates", tmp_path / "tls", *arguments).code == 2
    assert not (tmp_path / "tls").exists()


def test_a_place_that_cannot_be_made_is_named(tmp_path, federation_command):
    (tmp_path / "file").write_text("")
    for arguments in (
        ("certificates", tmp_path / "file", "--host", "a"),
        ("node-key", tmp_path / "file" / "key"),
        ("bundle", "approve", Path(__file__).parents[2], "--list", tmp_path / "file" / "list.json"),
    ):
        found = federation_command(*arguments)
        assert (found.code, "file" in found.err) == (2, True), arguments


def test_the_commands_say_what_goes_where(tmp_path, federation_command):
    made = federation_command("certificates", tmp_path / "tls", "--host", "localhost", "--json").json
    assert Path(made["authority"]).is_file()
    node = federation_command("node-key", tmp_path / "node", "--json").json
    assert node["fingerprint"] == node_key_fingerprint(Path(node["public"]).read_bytes())
