"""`trust`: the coordinator's list of assessors' keys, changed only with the root key."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox_compliance.cli_common import JsonOption, NoInputOption, emit, parse_day, tell

if TYPE_CHECKING:
    from fedvox_compliance.keys import SigningKey
    from fedvox_compliance.trust import Role, TrustStore

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

StoreOption = Annotated[Path, typer.Option("--store", help="The trust store.", show_default=False)]
RootOption = Annotated[Path, typer.Option("--root", help="The pinned root key (.pub).", show_default=False)]
KeyOption = Annotated[Path, typer.Option("--key", help="The private key to sign with.", show_default=False)]


def present() -> dt.datetime:
    """The present moment, in UTC and whole seconds."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def signing_key(path: Path, *, no_input: bool) -> SigningKey:
    """Read a private key, asking for its passphrase."""
    from fedvox_compliance.keys import ask_passphrase, load_private_key

    return load_private_key(path, ask_passphrase(f"Passphrase of {path}: ", allow_prompt=not no_input))


def open_store(
    path: Path, root: Path, *, now: dt.datetime, min_sequence: int = 1, allow_stale: bool = False
) -> TrustStore:
    """Read and check a trust store."""
    from fedvox_compliance.keys import load_public_key
    from fedvox_compliance.trust_file import load_trust_store

    return load_trust_store(
        path, root=load_public_key(root), now=now, min_sequence=min_sequence, allow_stale=allow_stale
    )


def sign_store(path: Path, store: TrustStore, key: Path, *, no_input: bool) -> None:
    """Sign a changed store and write it."""
    from fedvox_compliance.trust_file import save_trust_store

    save_trust_store(path, store, signing_key(key, no_input=no_input))


@app.command(
    epilog=("Example: fedvox-compliance trust init --store trust.json --key root.pem --name 'Study office'"),
)
def init(
    store: StoreOption,
    key: KeyOption,
    name: Annotated[str, typer.Option("--name", help="Whose store it is.")] = "",
    signatures: Annotated[
        int, typer.Option("--signatures", min=1, max=9, help="Assessors who must sign.")
    ] = 1,
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a trust store, signed by the root key."""
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.files import problems_named
    from fedvox_compliance.trust_file import new_store

    if store.exists():
        raise UsageError(f"{store}: exists already", "Change it with `trust add` and the other commands.")
    with problems_named("trust init"):
        started = new_store(name, present(), required_signatures=signatures)
    _change(store, started, key, no_input, as_json)


@app.command(
    epilog=(
        "Example: fedvox-compliance trust add a.pem.pub --store trust.json --root root.pem.pub "
        "--key root.pem --name 'Dr. A' --until 2027-11-24"
    ),
)
def add(
    public: Annotated[Path, typer.Argument(help="The assessor's .pub file.", show_default=False)],
    store: StoreOption,
    root: RootOption,
    key: KeyOption,
    name: Annotated[str, typer.Option("--name", help="The assessor's name.", show_default=False)],
    until: Annotated[
        str, typer.Option("--until", help="Last day of validity, 2027-11-24.", show_default=False)
    ],
    role: Annotated[list[str] | None, typer.Option("--role", help="assessor, reviewer or observer.")] = None,
    study: Annotated[list[str] | None, typer.Option("--study", help="Only for these studies.")] = None,
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Trust another assessor's key."""
    from fedvox_compliance.files import problems_named
    from fedvox_compliance.keys import load_public_key
    from fedvox_compliance.trust import Role, TrustedKey
    from fedvox_compliance.trust_file import add_key

    now = present()
    roles = tuple(_role(r) for r in role or [Role.ASSESSOR.value])
    public_key, end = load_public_key(public).base64, _end_of(until, now)
    with problems_named("trust add"):
        new = TrustedKey(
            public_key=public_key,
            name=name,
            roles=roles,
            valid_from=now,
            valid_until=end,
            studies=tuple(study or ()),
        )
    changed = add_key(open_store(store, root, now=now, allow_stale=True), new, now)
    _change(store, changed, key, no_input, as_json)


@app.command(epilog="Example: fedvox-compliance trust endorse new.pem.pub --key old.pem -o word.json")
def endorse(
    new: Annotated[Path, typer.Argument(help="The new .pub file.", show_default=False)],
    key: KeyOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the rotation goes.", show_default=False)
    ],
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """As an assessor: let the old key sign for the new one. Send the result to the coordinator."""
    from fedvox_compliance.files import write_atomic
    from fedvox_compliance.keys import load_public_key
    from fedvox_compliance.trust import Rotation

    word = Rotation.make(signing_key(key, no_input=no_input), load_public_key(new), present())
    write_atomic(output, word.model_dump_json(indent=1).encode() + b"\n", mode=0o644)
    value = {
        "schema": "fedvox.rotation/1",
        "file": str(output),
        "old": word.old.key_id,
        "new": word.new.key_id,
    }
    _say(value, f"{output}: {word.old.key_id[:16]}… vouches for {word.new.key_id[:16]}…", as_json)


@app.command(
    epilog=(
        "Example: fedvox-compliance trust rotate word.json --store trust.json --root root.pem.pub "
        "--key root.pem --until 2028-11-24"
    ),
)
def rotate(
    rotation: Annotated[
        Path, typer.Argument(help="The file that `trust endorse` wrote.", show_default=False)
    ],
    store: StoreOption,
    root: RootOption,
    key: KeyOption,
    until: Annotated[str, typer.Option("--until", help="Last day of the new key.", show_default=False)],
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """As the coordinator: let an endorsed key take the old one's place, which is retired."""
    from pydantic import ValidationError

    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.files import read_limited
    from fedvox_compliance.trust import Rotation
    from fedvox_compliance.trust_file import add_rotated_key

    try:
        word = Rotation.model_validate_json(read_limited(rotation, 64 * 1024))
    except ValidationError:
        raise UsageError(f"{rotation}: not a rotation", "Name the file that `trust endorse` wrote.") from None
    now = present()
    end = _end_of(until, now)
    changed = add_rotated_key(open_store(store, root, now=now, allow_stale=True), word, end, now)
    _change(store, changed, key, no_input, as_json)


@app.command(
    "revoke-key",
    epilog=(
        "Example: fedvox-compliance trust revoke-key 1a2b3c4d5e6f7a8b --store trust.json --root "
        "root.pem.pub --key root.pem --compromised"
    ),
)
def revoke_one_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, or its first 16 digits.", show_default=False)],
    store: StoreOption,
    root: RootOption,
    key: KeyOption,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="Nothing it ever signed counts any more.")
    ] = False,
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: retired (older signatures stay) or compromised (none does)."""
    from fedvox_compliance.files import problems_named
    from fedvox_compliance.trust import RevocationReason
    from fedvox_compliance.trust_file import revoke_key

    now = present()
    reason = RevocationReason.COMPROMISED if compromised else RevocationReason.RETIRED
    found = open_store(store, root, now=now, allow_stale=True)
    with problems_named("trust revoke-key"):
        changed = revoke_key(found, key_id, reason, now, note)
    _change(store, changed, key, no_input, as_json)


@app.command(
    epilog=("Example: fedvox-compliance trust renew --store trust.json --root root.pem.pub --key root.pem"),
)
def renew(
    store: StoreOption,
    root: RootOption,
    key: KeyOption,
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Sign the store afresh for another 90 days."""
    from fedvox_compliance import trust_file

    now = present()
    changed = trust_file.renew(open_store(store, root, now=now, allow_stale=True), now)
    _change(store, changed, key, no_input, as_json)


@app.command(
    "rotate-root",
    epilog=(
        "Example: fedvox-compliance trust rotate-root --store trust.json --root root.pem.pub --key "
        "root.pem --new-key new-root.pem"
    ),
)
def rotate_root_key(
    store: StoreOption,
    root: RootOption,
    key: Annotated[Path, typer.Option("--key", help="The present root key.", show_default=False)],
    new_key: Annotated[
        Path, typer.Option("--new-key", help="The new root key (private).", show_default=False)
    ],
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replace the root key. Servers that pin the old one follow by its signature; give them the new one soon."""
    from fedvox_compliance.trust_file import rotate_root, save_trust_store

    now = present()
    old, new = signing_key(key, no_input=no_input), signing_key(new_key, no_input=no_input)
    changed = rotate_root(open_store(store, root, now=now, allow_stale=True), old, new.public, now)
    save_trust_store(store, changed, new)
    value = _stored(store, changed) | {"root_key": new.public.key_id}
    _say(value, f"{store}: sequence {changed.sequence}, root key {new.public.key_id[:16]}…", as_json)


@app.command(epilog="Example: fedvox-compliance trust show --store trust.json --root root.pem.pub")
def show(store: StoreOption, root: RootOption, as_json: JsonOption = False) -> None:
    """List what the store trusts, and what it has revoked."""
    found = open_store(store, root, now=present(), allow_stale=True)
    lines = [f"{found.name or store}: sequence {found.sequence}, good until {found.valid_until:%Y-%m-%d}"]
    for item in found.keys:
        state = (
            f"revoked ({item.revoked.reason.value})" if item.revoked else f"until {item.valid_until:%Y-%m-%d}"
        )
        roles, studies = ", ".join(r.value for r in item.roles), ", ".join(item.studies) or "all studies"
        lines.append(f"{item.key_id[:16]}  {item.name}  {roles}  {studies}  {state}")
    lines += [f"withdrawn {item.serial}  {item.at:%Y-%m-%d}  {item.note}" for item in found.revoked_serials]
    emit(found.model_dump(mode="json", by_alias=True), "\n".join(lines), as_json=as_json)


def _change(path: Path, store: TrustStore, key: Path, no_input: bool, as_json: bool) -> None:
    sign_store(path, store, key, no_input=no_input)
    _say(_stored(path, store), f"{path}: sequence {store.sequence}", as_json)


def _stored(path: Path, store: TrustStore) -> dict[str, Any]:
    return {"schema": "fedvox.trust-changed/1", "store": str(path), "sequence": store.sequence}


def _say(value: dict[str, Any], text: str, as_json: bool) -> None:
    """A file was written: as JSON that is a result, in words it is something said about the work."""
    if as_json:
        emit(value, text, as_json=True)
    else:
        tell(text)


def _role(name: str) -> Role:
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.trust import Role

    try:
        return Role(name)
    except ValueError:
        raise UsageError(f"there is no role {name!r}", f"Choose from {', '.join(Role)}.") from None


def _end_of(day: str, now: dt.datetime) -> dt.datetime:
    """The last second of a day to come."""
    from fedvox_compliance.errors import UsageError

    last = parse_day(day, "--until")
    end = dt.datetime(last.year, last.month, last.day, 23, 59, 59, tzinfo=dt.UTC)
    if end <= now:
        raise UsageError(f"--until: {day} is past", "Give a day to come.")
    return end
