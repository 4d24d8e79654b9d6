"""The review page's server over HTTP: closed to strangers, strict on roles, honest about conflicts."""

from __future__ import annotations

import io
import zipfile

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from fedvox.curation.review.app import create_app
from fedvox.curation.review.launch import Address, bind, serve
from fedvox.curation.store import Finding, NewItem, Verdict
from fedvox.errors import ConfigError

ORIGIN = "http://127.0.0.1:8765"


class Browser:
    """A signed-in browser."""

    def __init__(self, app, token):
        self.client = TestClient(app, base_url=ORIGIN)
        self.entered = self.client.get("/", params={"token": token})
        page = self.client.get("/").text
        self.csrf = page.split('data-csrf="')[1].split('"')[0] if "data-csrf" in page else ""

    def get(self, path):
        return self.client.get(path)

    def post(self, path, body=None, **headers):
        headers = {"origin": ORIGIN, "x-csrf": self.csrf} | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        if isinstance(body, bytes):
            return self.client.post(path, content=body, headers=headers)
        return self.client.post(path, json={} if body is None else body, headers=headers)

    def next(self, skip=None):
        return self.post("/api/next" + (f"?skip={skip}" if skip else "")).json()["case"]

    def decide(self, case, action="accept", version=None, **fields):
        body = {
            "action": action,
            "version": case["shown"] if version is None and action == "accept" else version,
            "revision": case["revision"],
            "item": case["item"] and case["item"]["id"],
            "seconds": 12.5,
            "request_id": "0123456789abcdef" + case["case_id"] + action,
        } | fields
        return self.post(f"/api/cases/{case['case_id']}/decision?base={case['shown']}", body)


@pytest.fixture
def server(collection):
    collection.app = create_app(collection.store, origin=ORIGIN)

    def come(name, role="reviewer"):
        return Browser(collection.app, collection.store.people.admit(name, role, actor="test"))

    collection.come = come
    return collection


# ---- the door --------------------------------------------------------------------------------------------------


def test_without_a_token_there_is_a_door_and_nothing_behind_it(server):
    client = TestClient(server.app, base_url=ORIGIN)
    assert 'type="password"' in client.get("/").text
    assert client.get("/", params={"token": "guess"}).status_code == 403
    for path in ("/api/status", "/api/cases/case_1", "/api/cases/case_1/image/0/3", "/api/queue"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]) == (401, "sign in first")


def test_the_token_may_be_typed_too(server):
    token = server.store.people.admit("Ada", "reviewer", actor="test")
    client = TestClient(server.app, base_url=ORIGIN)
    assert client.post("/", data={"token": token}, headers={"origin": ORIGIN}).status_code == 200
    assert client.get("/api/status").json()["total"] == 3


def test_every_answer_carries_the_policy_and_the_cookie_is_strict(server):
    ada = server.come("Ada")
    cookie = ada.entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    for answer in (ada.get("/"), ada.get("/static/review.js"), ada.get("/nowhere"), ada.get("/api/status")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.test"}, 403),
        ({"origin": ""}, 403),
        ({"host": "rebound.test:8765"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"x-csrf": "wrong"}, 403),
        ({"content-length": "70000"}, 413),
    ],
)
def test_a_request_from_elsewhere_changes_nothing(server, headers, status):
    ada = server.come("Ada")
    answer = ada.client.post("/api/next", json={}, headers={"origin": ORIGIN, "x-csrf": ada.csrf} | headers)
    assert answer.status_code == status
    assert server.store.queue.counts() == {"open": 3}


def test_other_methods_are_refused(server):
    ada = server.come("Ada")
    assert ada.client.put("/api/next", headers={"origin": ORIGIN}).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py",
        "/static/%2e%2e/guard.py",
        "/api/cases/..%2F..%2Fcuration.json",
        "/api/cases/..",
        "/api/cases/case_1/labels/1/0/../../../../curation.db",
        "/curation.db",
    ],
)
def test_no_path_leads_out_of_what_is_served(server, path):
    answer = server.come("Ada").get(path)
    assert answer.status_code == 404
    assert "schema_version" not in answer.text
    assert "class Guard" not in answer.text


@pytest.mark.parametrize(
    "picture", ["../../etc/passwd", "/etc/passwd", "rounds/../../x.png", "curation.json", "rounds/1/x"]
)
def test_a_findings_picture_comes_from_the_rounds_folder_alone(server, picture):
    finding = Finding("case_1", 1, 1, "liver", "rule", 0.5, picture=picture)
    server.store.findings.replace(1, [finding], actor="test")
    assert server.come("Ada").get("/api/cases/case_1/findings/0/picture").status_code == 404


def test_a_findings_picture_is_served(server):
    folder = server.folder / "rounds" / "001"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"\x89PNG picture")
    finding = Finding("case_1", 1, 1, "liver", "rule", 0.5, picture="rounds/001/a.png")
    server.store.findings.replace(1, [finding], actor="test")
    answer = server.come("Ada").get("/api/cases/case_1/findings/0/picture")
    assert (answer.content, answer.headers["content-type"]) == (b"\x89PNG picture", "image/png")


def test_a_reader_looks_and_does_not_decide(server):
    eve = server.come("Eve", "reader")
    case = eve.get("/api/cases/case_1").json()
    assert case["may_decide"] is False
    assert eve.get("/api/cases/case_1/labels/1/0/9").status_code == 200
    assert eve.post("/api/next").status_code == 403
    assert eve.decide(case).status_code == 403
    assert server.store.case("case_1").revision == 1


def test_who_is_dismissed_is_out_at_once(server):
    ada = server.come("Ada")
    assert ada.get("/api/status").status_code == 200
    server.store.people.dismiss("Ada", actor="lead")
    assert ada.get("/api/status").status_code == 401


# ---- looking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "index"), [(0, 9), (1, 12), (2, 21)])
def test_planes_are_the_voxels_of_the_store(server, axis, index):
    ada = server.come("Ada")
    answer = ada.get(f"/api/cases/case_1/image/{axis}/{index}")
    assert answer.headers["x-voxel-type"] == "int16"
    plane = np.take(server.store.images.read("case_1")[0], index, axis=axis)
    assert np.array_equal(np.frombuffer(answer.content, "<i2").reshape(plane.shape), plane)
    answer = ada.get(f"/api/cases/case_1/labels/2/{axis}/{index}")
    plane = np.take(server.organs(), index, axis=axis)
    assert np.array_equal(
        np.frombuffer(answer.content, answer.headers["x-voxel-type"]).reshape(plane.shape), plane
    )


@pytest.mark.parametrize("path", ["image/0/18", "image/3/0", "image/0/-1", "labels/9/0/0", "labels/1/2/30"])
def test_a_plane_that_is_not_there_is_told(server, path):
    answer = server.come("Ada").get(f"/api/cases/case_1/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_a_finding_leads_to_its_evidence(server):
    ada = server.come("Ada")
    case = ada.get("/api/cases/case_1").json()
    assert [(f["structure"], f["severity"]) for f in case["findings"]] == [
        ("spleen", 0.9),
        ("left kidney", 0.2),
    ]
    assert ["expected mm3", "870"] in case["findings"][0]["evidence"]
    z, y, x = ada.get("/api/cases/case_1/findings/0/place").json()["voxel"]
    assert server.organs()[z, y, x] == 2  # where the consensus has a spleen and the label has none
    assert ada.get("/api/cases/case_1/findings/1/place").json()["voxel"] == [4, 16, 7]  # as the check says


def test_attention_maps_are_served_plane_by_plane(server):
    from fedvox.data.bricks import CaseHeader, write_case

    ada = server.come("Ada")
    assert ada.get("/api/cases/case_1").json()["maps"] == []
    maps = np.random.default_rng(0).integers(0, 256, (2, 18, 24, 30)).astype(np.uint8)
    file = server.folder / "rounds" / "001" / "maps" / "case_1.arrow"
    file.parent.mkdir(parents=True)
    write_case(file, maps, None, header=CaseHeader("case_1", (3.0, 2.0, 1.5), ("disagreement", "entropy")))
    assert ada.get("/api/cases/case_1").json()["maps"] == ["disagreement", "entropy"]
    plane = ada.get("/api/cases/case_1/map/entropy/1/7").content
    assert np.array_equal(np.frombuffer(plane, np.uint8).reshape(18, 30), maps[1, :, 7])
    assert ada.get("/api/cases/case_1/map/overlap/1/7").status_code == 404


# ---- deciding ----------------------------------------------------------------------------------------------------


def test_two_reviewers_get_different_cases_and_progress_counts(server):
    ada, bo = server.come("Ada"), server.come("Bo")
    first, second = ada.next(), bo.next()
    assert {first["case_id"], second["case_id"]} == {"case_1", "case_2"}
    assert ada.next()["case_id"] == first["case_id"]  # asked again, the same one
    told = ada.decide(first, version=2).json()
    assert (told["decision"], told["version"]) == ("accept", 2)
    assert (told["status"]["done"], told["status"]["leased"], told["status"]["mine"]) == (1, 1, 1)
    assert server.store.case(first["case_id"]).head == 2
    (review,) = server.store.reviews()
    assert (review.reviewer, review.seconds) == ("Ada", 12.5)


def test_a_skipped_case_goes_back_and_another_one_comes(server):
    ada, bo = server.come("Ada"), server.come("Bo")
    first = ada.next()
    other = ada.next(skip=first["item"]["id"])
    assert other["case_id"] != first["case_id"]
    assert bo.next()["case_id"] == first["case_id"]


def test_the_second_of_two_reviewers_on_one_case_is_told_what_changed_and_nothing_is_lost(server):
    ada, bo = server.come("Ada"), server.come("Bo", "lead")
    case = ada.next()
    same = bo.get(f"/api/cases/{case['case_id']}").json()
    assert bo.decide(same, version=2, reason="spleen is there").status_code == 200
    late = ada.decide(case, version=3)
    assert late.status_code == 409
    told = late.json()
    assert (told["last"]["reviewer"], told["last"]["reason"], told["last"]["result"]) == (
        "Bo",
        "spleen is there",
        2,
    )
    assert [change["structure"] for change in told["changes"]] == ["spleen"]
    assert told["changes"][0]["added_mm3"] == pytest.approx(9.0 * (server.organs() == 2).sum())
    assert server.store.case(case["case_id"]).head == 2
    assert len(server.store.reviews()) == 1
    # chosen on purpose, with the revision that was told: both decisions are in the history
    again = ada.decide(
        case | {"revision": told["revision"], "item": None}, version=3, request_id="another-request"
    )
    assert again.status_code == 200
    assert [r.result for r in server.store.reviews()] == [2, 3]


def test_the_same_request_sent_twice_is_one_decision(server):
    ada = server.come("Ada")
    case = ada.next()
    assert ada.decide(case).json()["version"] == ada.decide(case).json()["version"] == 1
    assert len(server.store.reviews()) == 1


def test_a_rejection_needs_a_reason(server):
    ada = server.come("Ada")
    case = ada.next()
    refused = ada.decide(case, "reject", reason="  ")
    assert (refused.status_code, refused.json()["code"]) == (422, "no_reason")
    assert ada.decide(case, "reject", reason="spleen is missing").status_code == 200
    (review,) = server.store.reviews()
    assert (review.decision, review.reason, server.store.case("case_1").head) == (
        "reject",
        "spleen is missing",
        1,
    )


def test_undo_brings_the_label_back_once_and_never_over_somebody_else(server):
    ada, bo = server.come("Ada"), server.come("Bo")
    case = ada.next()
    assert ada.decide(case, version=2).json()["can_undo"]
    back = ada.post("/api/undo").json()["case"]
    assert (back["case_id"], back["shown"]) == (case["case_id"], 1)
    assert ada.post("/api/undo").json()["code"] == "nothing_to_undo"
    assert ada.decide(back, version=3, request_id="second-thought").status_code == 200
    seen = bo.get(f"/api/cases/{case['case_id']}").json()
    assert bo.decide(seen, version=2).status_code == 200
    assert ada.post("/api/undo").status_code == 409
    assert server.store.case(case["case_id"]).head == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"seconds": -1},
        {"seconds": 1e9},
        {"seconds": "nan"},
        {"request_id": ""},
        {"action": "delete"},
        {"extra": 1},
    ],
)
def test_a_decision_with_nonsense_is_refused_by_field(server, fields):
    ada = server.come("Ada")
    answer = ada.decide(ada.next(), **fields)
    assert answer.status_code == 422
    assert next(iter(fields)) in answer.json()["error"]
    assert not server.store.reviews()


def test_a_case_that_was_deleted_meanwhile_is_told(server):
    ada = server.come("Ada")
    case = ada.next()
    server.store.delete_case(case["case_id"], actor="lead", reason="consent withdrawn")
    answer = ada.decide(case)
    assert (answer.status_code, answer.json()["code"]) == (410, "case_deleted")
    assert "next case" in answer.json()["remedy"]


def test_a_gold_case_is_looked_at_and_left_alone(server):
    from fedvox.curation.store import NewCase, Source

    store = server.store
    store.add_cases([NewCase("case_g", (18, 24, 30), (3.0, 2.0, 1.5), gold=True)], actor="test")
    store.add_version("case_g", server.organs(), Source("import", "x"), round=0, actor="test", move_head=True)
    with pytest.MonkeyPatch.context() as patch:  # its image is that of another case
        patch.setitem(store.images.rows, "case_g", 0)
        ada = server.come("Ada", "lead")
        case = ada.get("/api/cases/case_g").json()
        assert (case["gold"], case["may_decide"]) == (True, False)
        assert ada.decide(case).json()["code"] == "gold_is_frozen"


def test_a_locked_database_is_told_and_nothing_is_lost(server):
    from fedvox.curation.store import LabelStore

    store = LabelStore.open(server.folder, timeout_s=0.1)
    bo = Browser(create_app(store, origin=ORIGIN), server.store.people.admit("Bo", "reviewer", actor="test"))
    case = bo.next()
    with server.store.database.write():
        answer = bo.decide(case)
        assert answer.status_code == 503
        assert "locked" in answer.json()["error"]
    assert bo.decide(case).status_code == 200
    store.close()


# ---- second opinions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["double", "blind"])
def test_a_second_reader_is_not_told_who_read_before_nor_what_they_did(server, purpose):
    store = server.store
    drawn = np.where(server.ball((9, 12, 12), 4), 1, server.organs())
    store.edit(Verdict("case_3", 1, "Dr. First", seconds=9, reason="telltale"), drawn, parent=1, tool="pen")
    store.queue.replace(1, [NewItem("case_3", purpose, 99.0, 1.0, 1.0, not_for="Dr. First")], actor="test")
    assert server.come("Dr. First").next() is None
    ada = server.come("Ada")
    answer = ada.post("/api/next")
    case = answer.json()["case"]
    assert (case["blind"], case["shown"]) == (True, 1)
    assert [v["number"] for v in case["versions"]] == [4, 3, 2, 1]
    for text in (answer.text, ada.get("/api/cases/case_3").text):
        assert "Dr. First" not in text
        assert "telltale" not in text
    assert ada.get("/api/cases/case_3/labels/5/0/9").status_code == 404
    assert ada.decide(case, version=5).json()["code"] == "unknown_version"
    told = ada.decide(case, version=2).json()
    assert (told["decision"], told["can_undo"]) == ("accept", False)
    assert store.case("case_3").head == 5  # a second opinion moves no label


# ---- editing elsewhere -------------------------------------------------------------------------------------------


def test_a_task_goes_out_as_a_zip_and_the_edited_mask_comes_back(server):
    ada = server.come("Ada")
    case = ada.next()
    answer = ada.get("/api/cases/case_1/task.zip?version=1")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert "case_1/slicer/case_1.seg.nrrd" in archive.namelist()
    original = nib.Nifti1Image.from_bytes(_unzipped(archive.read("case_1/labels/original/case_1.nii.gz")))
    edited = nib.Nifti1Image(server.organs().transpose(2, 1, 0), original.affine)
    told = ada.post(
        "/api/cases/case_1/edited?version=1", _zipped(edited), x_file_name="my%20mask.nii.gz"
    ).json()
    assert [(c["structure"], c["removed_voxels"]) for c in told["changes"]] == [("spleen", 0)]
    assert len(server.store.versions("case_1")) == 4  # nothing is written before it is confirmed
    done = ada.decide(case, "edit", reason="drawn in Slicer").json()
    version = server.store.version("case_1", done["version"])
    assert (version.parent, version.source.kind, version.reviewer) == (1, "person", "Ada")
    assert np.array_equal(server.store.read_mask(version), server.organs())
    assert (
        ada.decide(case | {"revision": 2}, "edit", request_id="once-more").json()["code"]
        == "nothing_uploaded"
    )


@pytest.mark.parametrize(
    ("change", "name", "code"),
    [
        (lambda m, a: (m[:, :, :-1], a), "x.nii.gz", "shape_mismatch"),
        (lambda m, a: (m, a + np.eye(4, k=3) * 2), "x.nii.gz", "affine_mismatch"),
        (lambda m, a: (m * 5, a), "x.nii.gz", "unknown_label_value"),
        (lambda m, a: (m, a), "x.exe", "unsupported_type"),
        (lambda m, a: (m, a), "../../x.seg.nrrd", "not_nrrd"),
    ],
)
def test_an_edited_mask_that_does_not_fit_is_refused_before_anything_is_written(server, change, name, code):
    ada = server.come("Ada")
    ada.next()
    affine = np.asarray(server.store.case("case_1").affine)[:, [2, 1, 0, 3]]
    mask, affine = change(server.organs().transpose(2, 1, 0), affine)
    answer = ada.post(
        "/api/cases/case_1/edited?version=1", _zipped(nib.Nifti1Image(mask, affine)), x_file_name=name
    )
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert "/tmp" not in answer.text
    assert len(list(server.store.masks.names())) == len(
        {v.mask_sha256 for v in server.store.versions("case_1")}
    )


def _zipped(image):
    import gzip

    return gzip.compress(image.to_bytes(), 1)


def _unzipped(data):
    import gzip

    return gzip.decompress(data)


# ---- where it is served ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": "10.0.0.5"}, "unencrypted"),
        ({"host": "0.0.0.0"}, "every address"),
        ({"host": "example.org"}, "no IP address"),
        ({"certificate": "missing.pem"}, "belong together"),
        ({"host": "10.0.0.5", "certificate": "missing.pem", "key": "missing.key"}, "not there"),
    ],
)
def test_it_is_served_on_loopback_unless_it_is_encrypted(tmp_path, fields, words):
    paths = {key: tmp_path / value if key != "host" else value for key, value in fields.items()}
    with pytest.raises(ConfigError, match=words):
        Address(**paths)


def test_a_taken_port_is_told():
    with bind(Address()) as taken, pytest.raises(ConfigError, match="port"):
        bind(Address(port=taken.getsockname()[1]))


def test_a_certificate_that_is_none_is_told_before_anybody_is_admitted(collection, tmp_path, capsys):
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    address = Address(certificate=junk, key=junk)
    with pytest.raises(ConfigError, match=r"junk\.pem"):
        serve(collection.store, address, person="Eve", role="reader", lease_s=60)
    assert collection.store.people.all() == []
    assert capsys.readouterr().out == ""


def test_a_page_that_nobody_may_open_is_not_served(collection):
    with pytest.raises(ConfigError, match="nobody is admitted"):
        serve(collection.store, Address(), person=None, role="reviewer", lease_s=60)
