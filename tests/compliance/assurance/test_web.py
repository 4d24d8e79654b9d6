"""The web form over HTTP: closed to everybody but this computer's own browser, honest about conflicts, safe to read."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fedvox_compliance.assessment import Answer
from fedvox_compliance.cli import main
from fedvox_compliance.errors import UsageError
from fedvox_compliance.scoring import score
from fedvox_compliance.web.app import create_app
from fedvox_compliance.web.launch import bind_loopback
from fedvox_compliance.web.state import FormServer, version_of
from fedvox_compliance.workspace import Workspace

PORT = 8765
ORIGIN = f"http://127.0.0.1:{PORT}"
CONTROL, THEME = "GDPR.6.1", "lawfulness"
MEBIBYTE = 2**20


@dataclasses.dataclass
class Browser:
    """A browser that came through the printed address and said its name."""

    client: TestClient
    server: FormServer
    csrf: str = ""

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def post(self, path: str, *, scripted: bool = False, files: Any = None, **fields: str) -> Any:
        headers = {"origin": ORIGIN} | ({"accept": "application/json"} if scripted else {})
        data = {"csrf": self.csrf} | fields
        return self.client.post(path, data=data, files=files, headers=headers, follow_redirects=False)

    def version(self, control: str = CONTROL) -> str:
        return version_of(self.server.space.assessment.entries.get(control))

    def answer(self, answer: str, control: str = CONTROL, **fields: str) -> Any:
        fields = {"version": self.version(control)} | fields
        return self.post(f"/answer/{control}", scripted=True, answer=answer, **fields)


@pytest.fixture
def server(tmp_path: Path, make: Any) -> FormServer:
    space = Workspace.create(tmp_path / "c", clinic="Klinikum", author="A. Meyer", clock=lambda: make.now)
    return FormServer(space, max_upload=MEBIBYTE)


@pytest.fixture
def stranger(server: FormServer) -> Iterator[TestClient]:
    with TestClient(create_app(server, port=PORT), base_url=ORIGIN) as client:
        yield client


@pytest.fixture
def browser(stranger: TestClient, server: FormServer) -> Browser:
    stranger.get(f"/?token={server.token}")
    session = server.session(stranger.cookies.get(f"fedvox_{PORT}"))
    assert session is not None
    found = Browser(stranger, server, session.csrf)
    assert found.post("/who", name="A. Meyer").status_code == 303
    return found


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/scope", f"/section/{THEME}", "/report", "/nowhere"])
def test_without_the_printed_address_there_is_nothing_to_see(path: str, stranger: TestClient) -> None:
    answer = stranger.get(path)
    assert answer.status_code in (403, 404)
    assert "Klinikum" not in answer.text


@pytest.mark.parametrize("token", ["", "x", "é", "a" * 43])
def test_a_wrong_token_opens_nothing(token: str, stranger: TestClient) -> None:
    answer = stranger.get("/", params={"token": token})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_the_session_cookie_is_strict_and_out_of_scripts_reach(
    stranger: TestClient, server: FormServer
) -> None:
    cookie = stranger.get(f"/?token={server.token}").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert server.token.lower() not in cookie


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:80",
        f"localhost:{PORT}",
        f"127.0.0.1:{PORT}.evil.example",
        "",
    ],
)
def test_a_name_that_was_rebound_to_this_computer_does_not_get_through(host: str, browser: Browser) -> None:
    assert browser.client.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://localhost:{PORT}"},
        {"origin": ORIGIN, "sec-fetch-site": "cross-site"},
        {"origin": ORIGIN, "sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_cannot_write_even_with_cookie_and_secret(
    headers: dict[str, str], browser: Browser
) -> None:
    fields = {"csrf": browser.csrf, "answer": "yes", "version": browser.version()}
    answer = browser.client.post(f"/answer/{CONTROL}", data=fields, headers=headers)
    assert answer.status_code == 403
    assert CONTROL not in browser.server.space.assessment.entries


@pytest.mark.parametrize("csrf", ["", "x", "é"])
def test_a_form_without_its_secret_is_refused(csrf: str, browser: Browser) -> None:
    answer = browser.post(
        f"/answer/{CONTROL}", scripted=True, answer="yes", version=browser.version(), csrf=csrf
    )
    assert answer.status_code == 403
    assert CONTROL not in browser.server.space.assessment.entries


def test_the_secret_of_one_session_does_not_fit_another(browser: Browser, server: FormServer) -> None:
    other = server.session(server.login(server.token))
    assert other is not None
    assert browser.post("/language", language="de", csrf=other.csrf).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_get_and_post_are_spoken(method: str, browser: Browser) -> None:
    assert browser.client.request(method, "/", headers={"origin": ORIGIN}).status_code == 405


@pytest.mark.parametrize(
    "path", ["/", "/scope", f"/section/{THEME}", "/report", "/static/form.css", "/nowhere", "/static/none"]
)
def test_every_answer_carries_the_protective_headers(path: str, browser: Browser) -> None:
    headers = browser.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"


def test_no_page_needs_what_its_policy_forbids(browser: Browser) -> None:
    for path in ("/", "/scope", f"/section/{THEME}"):
        page = browser.get(path).text
        assert not re.search(
            r"<style|\sstyle=|\son[a-z]+=|javascript:|https?://(?!www\.w3\.org/2000/svg)", page
        )
        assert re.findall(r"<script[^>]*>", page) == ['<script src="/static/form.js" defer>']
    assert not re.search(r"\sstyle=|<script", browser.get("/report").text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "", "example.org"])
def test_no_other_address_is_served(host: str) -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1 only"):
        bind_loopback(host, 0)


def test_the_socket_listens_on_loopback_and_a_taken_port_is_told() -> None:
    first = bind_loopback("127.0.0.1", 0)
    try:
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UsageError, match="port"):
            bind_loopback("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


def test_the_command_refuses_other_hosts(server: FormServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["serve", str(server.space.folder), "--host", "0.0.0.0"])
    assert left.value.code == 2
    assert "127.0.0.1 only" in capsys.readouterr().err


# --- answering ------------------------------------------------------------------------------------


def test_an_answer_is_saved_with_its_author_and_moves_the_score(browser: Browser, make: Any) -> None:
    answer = browser.answer("yes", maturity="3", reason="Written down.")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["saved"]
    space = Workspace.open(browser.server.space.folder, clock=lambda: make.now)
    entry = space.entry(CONTROL)
    assert (entry.answer, entry.author, entry.maturity, entry.reason) == (
        Answer.YES,
        "A. Meyer",
        3,
        "Written down.",
    )
    expected = score(space.assessment, space.catalogue, on=make.now.date()).overall
    assert f'<span class="big">{int(expected * 100) / 100:.2f}</span>' in found["panel"]
    assert found["version"] == browser.version()


def test_the_form_works_without_script(browser: Browser) -> None:
    answer = browser.post(f"/answer/{CONTROL}", answer="partly", version=browser.version(), show="gates")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/section/{THEME}?show=gates#{CONTROL}"
    assert browser.server.space.entry(CONTROL).answer is Answer.PARTLY
    page = browser.get(f"/section/{THEME}").text
    card = page[page.index(f'id="{CONTROL}"') :]
    assert re.search(r'value="partly" checked', card)


@pytest.mark.parametrize(
    ("control", "fields", "why"),
    [
        (CONTROL, {"answer": "not_applicable", "reason": "x"}, "cannot be answered with not applicable"),
        (CONTROL, {"answer": "alternative", "reason": "x"}, "addressable"),
        ("ISO27001.A.5.7", {"answer": "not_applicable"}, "needs a written reason"),
        (CONTROL, {"answer": "planned"}, "needs the day"),
        (CONTROL, {"answer": "planned", "due": "soon"}, "no date"),
        (CONTROL, {"answer": "perfect"}, "no answer is chosen"),
        (CONTROL, {}, "no answer is chosen"),
        (CONTROL, {"answer": "yes", "maturity": "9"}, "0 to 5"),
        (CONTROL, {"answer": "yes", "reason": "a\x00b"}, "cannot be shown"),
        (CONTROL, {"answer": "yes", "reason": "x" * 4001}, "4000"),
    ],
)
def test_what_the_rules_refuse_is_explained_and_not_saved(
    control: str, fields: dict[str, str], why: str, browser: Browser
) -> None:
    answer = browser.post(f"/answer/{control}", scripted=True, version=browser.version(control), **fields)
    assert answer.status_code == 422
    assert not answer.json()["saved"]
    assert why in answer.json()["status"]
    assert control not in browser.server.space.assessment.entries


@pytest.mark.parametrize(
    ("control", "fields", "why"),
    [
        ("ISO27001.A.5.7", {"answer": "not_applicable"}, "braucht eine schriftliche Begründung"),
        (CONTROL, {"answer": "planned", "due": "soon"}, "ist kein Datum"),
        (CONTROL, {}, "keine Antwort gewählt"),
        (CONTROL, {"answer": "yes", "maturity": "9"}, "Zahl von 0 bis 5"),
        (CONTROL, {"answer": "yes", "version": "of yesterday"}, "inzwischen geändert"),
    ],
)
@pytest.mark.parametrize("scripted", [True, False])
def test_refusals_are_german_in_a_german_form(
    control: str, fields: dict[str, str], why: str, browser: Browser, scripted: bool
) -> None:
    browser.post("/language", language="de", back="/")
    given = {"version": browser.version(control)} | fields
    answer = browser.post(f"/answer/{control}", scripted=scripted, **given)
    shown = answer.json()["status"] if scripted else answer.text
    assert answer.status_code in (409, 422)
    assert why in shown
    assert not re.search(r"\b(is|the|needs|again|Write|Choose)\b", re.sub(r"<[^>]*>", "", shown))


def test_nobody_answers_anonymously(stranger: TestClient, server: FormServer) -> None:
    stranger.get(f"/?token={server.token}")
    session = server.session(stranger.cookies.get(f"fedvox_{PORT}"))
    assert session is not None
    nameless = Browser(stranger, server, session.csrf)
    assert nameless.answer("yes").status_code == 422
    assert nameless.post("/who", name=" ").status_code == 422
    assert nameless.post("/who", name="a\nb").status_code == 422
    page = stranger.get(f"/section/{THEME}").text
    assert "<fieldset disabled>" in page


def test_an_edit_by_somebody_else_is_noticed_and_shown(browser: Browser, make: Any) -> None:
    seen = browser.version()
    other = Workspace.open(browser.server.space.folder, clock=lambda: make.now)
    other.answer(CONTROL, Answer.NO, author="B. Braun", reason="We looked again.")
    late = browser.post(f"/answer/{CONTROL}", scripted=True, answer="yes", version=seen)
    assert late.status_code == 409
    assert "Somebody else" in late.json()["status"]
    assert "We looked again." in late.json()["card"]
    assert browser.server.space.entry(CONTROL).answer is Answer.NO
    assert browser.answer("yes").status_code == 200  # with the present version it is taken


def test_the_same_answer_again_on_the_same_day_writes_nothing(browser: Browser) -> None:
    browser.answer("yes")
    history = (browser.server.space.folder / "history.jsonl").read_bytes()
    assert browser.post(f"/answer/{CONTROL}", scripted=True, answer="yes", version="stale").status_code == 200
    assert (browser.server.space.folder / "history.jsonl").read_bytes() == history


def test_scope_answers_shorten_the_questionnaire(browser: Browser) -> None:
    before = browser.get("/section/rights").text.count('class="card question')
    catalogue = browser.server.space.catalogue
    question = next(q for c in catalogue.controls.values() if c.theme == "rights" for q in c.only_if)
    assert browser.post(f"/scope/{question}", scripted=True, applies="no").json()["saved"]
    assert browser.get("/section/rights").text.count('class="card question') < before
    assert browser.post(f"/scope/{question}", scripted=True, applies="maybe").status_code == 422
    assert browser.post("/scope/none", scripted=True, applies="no").status_code == 422


def test_filters_show_what_they_say(browser: Browser) -> None:
    browser.answer("yes")
    everything = browser.get(f"/section/{THEME}").text.count('class="card question')
    assert browser.get(f"/section/{THEME}?show=open").text.count('class="card question') == everything - 1
    assert 0 < browser.get(f"/section/{THEME}?show=gates").text.count('class="card question') < everything


def test_all_questions_in_scope_are_on_some_page(browser: Browser) -> None:
    shown: set[str] = set()
    for theme in browser.server.space.catalogue.themes:
        shown |= set(
            re.findall(r'class="card question[^"]*" id="([^"]+)"', browser.get(f"/section/{theme}").text)
        )
    assert shown == set(browser.server.space.catalogue.controls)


@pytest.mark.parametrize("path", ["/section/none", "/nowhere", "/static/../app.py", "/static/%2e%2e/app.py"])
def test_unknown_addresses_are_told_politely(path: str, browser: Browser) -> None:
    assert browser.get(path).status_code == 404


def test_an_unknown_control_changes_nothing(browser: Browser) -> None:
    assert browser.post("/answer/GDPR.999", scripted=True, answer="yes", version="x").status_code == 404


# --- language -------------------------------------------------------------------------------------


def test_the_language_changes_for_this_browser_and_stays_on_the_page(browser: Browser) -> None:
    answer = browser.post("/language", language="de", back=f"/section/{THEME}?show=open")
    assert answer.headers["location"] == f"/section/{THEME}?show=open"
    page = browser.get(f"/section/{THEME}").text
    assert '<html lang="de">' in page
    assert "Rechtsgrundlage" in page
    assert browser.post("/language", language="xx", back="/").status_code == 303
    assert '<html lang="de">' in browser.get("/").text


def test_no_english_is_left_on_any_page_of_the_german_form(browser: Browser) -> None:
    """Questions, help, documents that would be expected, buttons, hints, titles: read as a screen reader would."""
    browser.post("/language", language="de", back="/")
    themes = {c.theme for c in browser.server.space.catalogue.controls.values()}
    for path in ("/", "/scope", *(f"/section/{theme}" for theme in sorted(themes))):
        page = browser.client.get(path).text
        assert '<html lang="de">' in page
        said = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
        said = " ".join(
            [re.sub(r"<[^>]*>", " ", said), *re.findall(r'(?:aria-label|title|data-[a-z-]+)="([^"]*)"', said)]
        )
        said = said.replace("notice of privacy practices", "")  # a term of the law, which has no German name
        left = re.findall(
            r"\b(?:the|of|and|your|is|are|with|this|not|or|to|yes|help|evidence|save)\b.{0,40}", said
        )
        assert not left, (path, left[:5])
        assert "[en]" not in said


@pytest.mark.parametrize(
    "back", ["http://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", "", "/a\nb"]
)
def test_no_form_redirects_elsewhere(back: str, browser: Browser) -> None:
    assert browser.post("/language", language="en", back=back).headers["location"] == "/"


# --- documents ------------------------------------------------------------------------------------


def upload(browser: Browser, name: str, content: bytes, control: str = CONTROL, **fields: str) -> Any:
    fields = {"effective": "2026-01-01", "title": "Policy"} | fields
    return browser.post(f"/evidence/{control}", files={"file": (name, content)}, **fields)


def test_a_document_is_copied_hashed_and_attached(browser: Browser) -> None:
    assert upload(browser, "Policy 2026.pdf", b"content", expires="2027-01-01").status_code == 303
    (document,) = browser.server.space.entry(CONTROL).evidence
    assert document.sha256 == hashlib.sha256(b"content").hexdigest()
    assert (browser.server.space.folder / document.path).read_bytes() == b"content"
    assert (str(document.effective), str(document.expires)) == ("2026-01-01", "2027-01-01")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..\\..\\boot.ini",
        "/etc/passwd",
        "C:\\x.pdf",
        "a\x00b.pdf",
        ".hidden",
        "…",
        "x" * 300 + ".pdf",
        "<b>.html",
    ],
)
def test_no_file_name_leaves_the_evidence_folder(name: str, browser: Browser) -> None:
    folder = browser.server.space.folder
    before = {p for p in folder.rglob("*") if "evidence" not in p.parts and p.name != ".lock"}
    assert upload(browser, name, b"content").status_code in (303, 422)
    assert {p for p in folder.rglob("*") if "evidence" not in p.parts and p.name != ".lock"} == before
    for document in browser.server.space.entry(CONTROL).evidence:
        assert re.fullmatch(r"evidence/[A-Za-z0-9._-]+", document.path)
        assert (folder / document.path).resolve().parent == (folder / "evidence").resolve()


def test_too_large_uploads_are_refused_by_declaration_and_by_count(browser: Browser) -> None:
    assert upload(browser, "big.bin", b"x" * (MEBIBYTE + 1)).status_code == 422
    assert upload(browser, "huge.bin", b"x" * (2 * MEBIBYTE)).status_code == 413

    def endless() -> Iterator[bytes]:  # no content-length: chunked
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 65536

    headers = {"origin": ORIGIN, "content-type": "multipart/form-data; boundary=b"}
    answer = browser.client.post(f"/evidence/{CONTROL}", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert CONTROL not in browser.server.space.assessment.entries
    assert not list(browser.server.space.folder.glob(".incoming.*"))


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("empty.pdf", b"", {}),
        ("", b"x", {}),
        ("a.pdf", b"x", {"effective": "someday"}),
        ("a.pdf", b"x", {"expires": "2025-01-01"}),
    ],
)
def test_unusable_uploads_are_explained(
    name: str, content: bytes, fields: dict[str, str], browser: Browser
) -> None:
    answer = upload(browser, name, content, **fields)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert not browser.server.space.entry(CONTROL).evidence
    assert not list(browser.server.space.folder.glob(".incoming.*"))


def test_a_related_document_is_offered_and_taken_over_only_on_request(browser: Browser) -> None:
    space = browser.server.space
    source = next(c for c in space.catalogue.controls.values() if c.maps_to)
    target = source.maps_to[0]
    upload(browser, "shared.pdf", b"shared", control=source.id)
    page = browser.get(f"/section/{space.catalogue.controls[target].theme}").text
    assert f'action="/evidence/{target}/share"' in page
    assert target not in space.assessment.entries
    digest = space.entry(source.id).evidence[0].sha256
    assert browser.post(f"/evidence/{target}/share", sha256=digest).status_code == 303
    assert space.entry(target).evidence[0].shared_from == source.id
    assert browser.post(f"/evidence/{target}/share", sha256="0" * 64).status_code == 422


def test_a_document_can_be_detached_and_stays_in_the_folder(browser: Browser) -> None:
    upload(browser, "a.pdf", b"x")
    (document,) = browser.server.space.entry(CONTROL).evidence
    assert browser.post(f"/evidence/{CONTROL}/detach", sha256=document.sha256).status_code == 303
    assert browser.server.space.entry(CONTROL).evidence == ()
    assert (browser.server.space.folder / document.path).exists()


def test_a_second_person_confirms_what_was_shown_and_the_author_cannot(browser: Browser) -> None:
    browser.answer("yes")
    upload(browser, "a.pdf", b"x")
    assert browser.post(f"/confirm/{CONTROL}", version=browser.version()).status_code == 422
    assert browser.post("/who", name="B. Braun").status_code == 303
    assert browser.post(f"/confirm/{CONTROL}", version="another").status_code == 409
    assert "I, B. Braun, have read" in browser.get(f"/section/{THEME}").text
    assert browser.post(f"/confirm/{CONTROL}", version=browser.version()).status_code == 303
    second = browser.server.space.entry(CONTROL).second_person
    assert second is not None
    assert second.name == "B. Braun"


# --- what people typed is shown as text -----------------------------------------------------------


def test_answers_cannot_inject_anything_into_the_pages(browser: Browser) -> None:
    evil = '"><script>alert(1)</script>{{ 1337*1337 }}'
    browser.post("/who", name=evil[:100])
    browser.answer("yes", reason=f"</textarea>{evil}")
    upload(browser, "a.pdf", b"x", title=evil)
    for path in ("/", f"/section/{THEME}", "/report"):
        page = browser.get(path).text
        assert "<script>alert" not in page
        assert "1787569" not in page
    assert "&lt;script&gt;alert(1)" in browser.get(f"/section/{THEME}").text
    scripted = browser.answer("no", reason=evil).json()
    assert "<script" not in scripted["meta"] + scripted["panel"] + scripted["sections"]


def test_every_page_shows_the_caveat_and_the_assurance_beside_the_score(browser: Browser) -> None:
    for path in ("/", "/scope", f"/section/{THEME}"):
        page = browser.get(path).text
        at = page.index('<span class="big">')
        assert "self-assessed, assurance level:" in page[at : at + 300]
        assert "Not legal advice" in page
        assert not re.search(r"\b(compliant|certified)\b", page)


def test_controls_are_labelled_and_grouped_for_screen_readers(browser: Browser) -> None:
    for path in ("/", "/scope", f"/section/{THEME}"):
        page = browser.get(path).text
        labelled = set(re.findall(r'<label for="([^"]+)"', page))
        for field in re.findall(r"<(?:input|select|textarea)\b[^>]*>", page):
            if 'type="hidden"' in field or 'type="radio"' in field:
                continue
            ident = re.search(r'id="([^"]+)"', field)
            assert ident is not None, field
            assert ident.group(1) in labelled, field
        assert page.count("<fieldset") == page.count("<legend")
        radios = re.findall(r'<label[^>]*><input type="radio"', page)
        assert len(radios) == page.count('type="radio"')
        idents = re.findall(r'\sid="([^"]+)"', page)
        assert len(set(idents)) == len(idents)
        assert 'aria-live="polite"' in page
        assert '<a class="skip" href="#content">' in page


def test_sessions_are_few_and_the_oldest_goes_first(server: FormServer) -> None:
    first = server.login(server.token)
    for _ in range(40):
        server.login(server.token)
    assert server.session(first) is None


def test_state_and_address_are_new_at_every_start(server: FormServer) -> None:
    again = FormServer(server.space)
    assert again.token != server.token
    assert len(server.token) >= 43
