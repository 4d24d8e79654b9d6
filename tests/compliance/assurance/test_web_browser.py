"""The web form in a real browser: a clinic fills it in one sitting, by mouse or by keyboard, and loses nothing."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedvox_compliance.assessment import Answer
from fedvox_compliance.catalogue import load_catalogue
from fedvox_compliance.workspace import Workspace

pytestmark = pytest.mark.integration
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1360,1000",
)


@dataclass
class Served:
    """A running form."""

    folder: Path
    process: subprocess.Popen[str]
    address: str

    @property
    def origin(self) -> str:
        return self.address.split("/?")[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def start(folder: Path) -> Served:
    command = [sys.executable, "-m", "fedvox_compliance", "serve", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return Served(folder, process, process.stdout.readline().strip())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start forms, and stop them at the end."""
    running: list[Served] = []

    def run(folder: Path | None = None, profile: str = "combined") -> Served:
        if folder is None:
            folder = tmp_path / "clinic"
            Workspace.create(folder, clinic="Klinikum Nordstadt", profile=profile, author="A. Meyer")
        running.append(start(folder))
        return running[-1]

    yield run
    for one in running:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start fresh browsers, and stop them at the end."""
    if CHROMIUM is None or DRIVER is None:
        assert "CI" not in os.environ, "chromium and chromium-driver must be installed for this test"
        pytest.skip("chromium and chromium-driver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    drivers: list[Any] = []

    def run(*flags: str, script: bool = True) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / f'profile-{len(drivers)}'}", *flags):
            options.add_argument(flag)
        if not script:
            options.add_experimental_option(
                "prefs", {"profile.managed_default_content_settings.javascript": 2}
            )
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        drivers.append(driver)
        return driver

    yield run
    for driver in drivers:
        with contextlib.suppress(Exception):
            driver.quit()


def enter(driver: Any, served: Served, name: str = "Dr. S. Okafor") -> None:
    driver.get(served.address)
    wait(driver, lambda: driver.find_elements("id", "name"))
    driver.find_element("id", "name").send_keys(name + "\n")
    wait(driver, lambda: not driver.find_elements("id", "name"))


def wait(driver: Any, condition: Callable[[], Any], seconds: float = 20) -> Any:
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):  # between two pages
            found = condition()
            if found:
                return found
        time.sleep(0.02)
    raise AssertionError(f"timed out at {driver.current_url}: {driver.page_source[-500:]}")


def follow(driver: Any, selector: str) -> None:
    """Click a link and wait until the next page is there."""
    before = driver.find_element("tag name", "html").id
    driver.find_element("css selector", selector).click()
    wait(driver, lambda: driver.find_element("tag name", "html").id != before)
    wait(driver, lambda: driver.execute_script("return document.readyState") == "complete")


def settled(driver: Any) -> bool:
    """Whether nothing is being saved."""
    return not driver.find_elements("css selector", ".save.busy")


def tick(driver: Any, form: str, name: str, value: str) -> None:
    selector = f'{form} input[name="{name}"][value="{value}"]'
    driver.execute_script(
        "arguments[0].scrollIntoView({block: 'center'})", driver.find_element("css selector", selector)
    )
    driver.find_element("css selector", selector).click()


def cli(*arguments: object) -> Any:
    """A command of the terminal, as JSON."""
    command = [sys.executable, "-m", "fedvox_compliance", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True).stdout)


def scored(folder: Path) -> Any:
    return cli("score", folder)


def pattern(number: int, choices: list[str]) -> str:
    """Which answer the scripted clinic gives to its n-th question."""
    wanted = ("yes", "yes", "partly", "yes", "no", "yes", "planned")[number % 7]
    return "not_applicable" if "not_applicable" in choices and number % 23 == 0 else wanted


def fill_section(driver: Any, first: int) -> dict[str, str]:
    """Answer every card of the page that is open; returns what was said."""
    said: dict[str, str] = {}
    cards = [c.get_attribute("id") for c in driver.find_elements("css selector", ".question")]
    for number, control in enumerate(cards, start=first):
        form = f'[id="{control}"] form[data-autosave]'
        radios = driver.find_elements("css selector", f'{form} input[name="answer"]')
        answer = pattern(number, [r.get_attribute("value") for r in radios])
        tick(driver, form, "answer", answer)
        if answer == "not_applicable":
            driver.find_element("css selector", f"{form} textarea").send_keys(
                "We have nothing of the kind.\t"
            )
        if answer == "planned":
            driver.execute_script(
                "const d = document.querySelector(arguments[0]); d.value = '2099-12-31';"
                "d.dispatchEvent(new Event('change', {bubbles: true}))",
                f'{form} input[name="due"]',
            )
        said[control] = answer
    wait(driver, lambda: settled(driver), 60)
    failed = driver.find_elements("css selector", ".save.failed .status, .save.pending .status")
    assert not failed, [f.text for f in failed]
    return said


@pytest.mark.slow
def test_a_clinic_fills_the_combined_profile_in_one_sitting(
    serve: Callable[..., Served], open_browser: Callable[..., Any], tmp_path: Path
) -> None:
    served, driver = serve(), open_browser()
    enter(driver, served)
    follow(driver, 'nav a[href="/scope"]')
    for number, form in enumerate(
        [f.get_attribute("id") for f in driver.find_elements("css selector", "form.scope")]
    ):
        tick(driver, f'[id="{form}"]', "applies", "no" if number % 4 == 3 else "yes")
    wait(driver, lambda: settled(driver), 60)
    said: dict[str, str] = {}
    follow(driver, ".onward a.primary")
    while True:
        said |= fill_section(driver, len(said))
        if not driver.find_elements("css selector", ".onward a.primary"):
            break
        follow(driver, ".onward a.primary")
    attach_to_gate(driver, served, tmp_path)
    follow(driver, 'nav a[href="/"]')
    shown = driver.find_element("css selector", "#panel .big").text
    assert driver.find_elements("css selector", ".good-note"), "everything in scope should be answered"
    result = scored(served.folder)
    assert shown == f"{int(result['overall'] * 100 + 1e-9) / 100:.2f}"
    assert result["complete"]
    assessment = Workspace.open(served.folder).assessment
    assert {i: e.answer.value for i, e in assessment.entries.items() if e.answer} == said
    assert {e.author for e in assessment.entries.values()} == {"Dr. S. Okafor"}
    assert len(said) > 200
    assert not [m for m in driver.get_log("browser") if m["level"] == "SEVERE"]


def attach_to_gate(driver: Any, served: Served, tmp_path: Path) -> None:
    """Attach a document through the page, and see it listed."""
    file = tmp_path / "Verschlüsselung & Schlüssel.txt"
    file.write_text("All disks are encrypted.\n")
    driver.get(f"{served.origin}/section/crypto")
    card = driver.find_element("css selector", ".question")
    control = card.get_attribute("id")
    for summary in (".evidence > summary", ".attach > summary"):
        driver.execute_script(
            "arguments[0].parentElement.open = true", card.find_element("css selector", summary)
        )
    card.find_element("css selector", "input[type=file]").send_keys(str(file))
    card.find_element("css selector", "input[name=title]").send_keys("Encryption concept")
    driver.execute_script(
        "arguments[0].value = '2026-01-01'", card.find_element("css selector", "input[name=effective]")
    )
    card.find_element("css selector", ".upload button").click()
    wait(driver, lambda: "Encryption concept" in driver.page_source)
    (document,) = Workspace.open(served.folder).entry(control).evidence
    assert (served.folder / document.path).read_text() == "All disks are encrypted.\n"


def test_the_keyboard_alone_is_enough(serve: Callable[..., Served], open_browser: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    served, driver = serve(profile="gdpr"), open_browser()
    enter(driver, served)
    driver.get(f"{served.origin}/section/lawfulness")

    def focused() -> Any:
        return driver.switch_to.active_element

    def press(*keys: str) -> None:
        focused().send_keys(*keys)

    driver.find_element("tag name", "body").send_keys(Keys.TAB)
    assert focused().get_attribute("class") == "skip"
    press(Keys.ENTER)
    for _ in range(12):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        if focused().get_attribute("name") == "answer":
            break
    assert focused().get_attribute("name") == "answer"
    card = driver.find_element("css selector", ".question").get_attribute("id")
    press(Keys.SPACE)
    wait(
        driver, lambda: settled(driver) and driver.find_elements("css selector", f'[id="{card}"] .save.saved')
    )
    press(Keys.ARROW_RIGHT)
    wait(driver, lambda: Workspace.open(served.folder).entry(card).answer is Answer.PARTLY)
    wait(driver, lambda: settled(driver))
    assert focused().get_attribute("value") == "partly", "saving must not steal the focus"
    outline = driver.execute_script(
        "const l = document.activeElement.closest('label'); return getComputedStyle(l).outlineStyle"
    )
    assert outline == "solid", "the focus must be seen"
    press(Keys.TAB)
    assert focused().get_attribute("name") == "reason"
    press("Typed without a mouse.", Keys.TAB)
    wait(driver, lambda: Workspace.open(served.folder).entry(card).reason == "Typed without a mouse.")
    assert focused().get_attribute("name") == "maturity"
    assert driver.find_element("id", "live").get_attribute("textContent").startswith("Score 0.0")


def test_the_accessibility_tree_names_every_field_and_landmark(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served, driver = serve(profile="gdpr"), open_browser()
    enter(driver, served)
    for path in ("/", "/scope", "/section/lawfulness"):
        driver.get(served.origin + path)
        nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        seen = [
            (n.get("role", {}).get("value"), n.get("name", {}).get("value", ""))
            for n in nodes
            if not n.get("ignored")
        ]
        roles = {role for role, _ in seen}
        assert {"banner", "navigation", "main", "complementary", "heading", "status"} <= roles
        for role in (
            "radio",
            "textbox",
            "combobox",
            "button",
            "link",
            "image",
            "progressbar",
            "Date",
        ):
            assert all(name.strip() for r, name in seen if r == role), (path, role)
        levels = [
            int(h.tag_name[1]) for h in driver.find_elements("css selector", "main h1, main h2, main h3")
        ]
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_what_was_saved_survives_a_kill_and_the_page_says_what_was_not(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served, driver = serve(profile="gdpr"), open_browser()
    enter(driver, served)
    driver.get(f"{served.origin}/section/lawfulness")
    cards = [c.get_attribute("id") for c in driver.find_elements("css selector", ".question")]
    for control in cards[:3]:
        tick(driver, f'[id="{control}"]', "answer", "yes")
        wait(driver, lambda: settled(driver))
    served.kill()
    tick(driver, f'[id="{cards[3]}"]', "answer", "yes")
    failed = wait(driver, lambda: driver.find_elements("css selector", ".save.failed .status"))
    assert "not running" in failed[0].text
    entries = Workspace.open(served.folder).assessment.entries
    assert set(entries) == set(cards[:3])
    assert scored(served.folder)["frameworks"]["GDPR"]["answered"] == 3


def test_two_windows_do_not_overwrite_each_other(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served, driver = serve(profile="gdpr"), open_browser()
    enter(driver, served)
    driver.get(f"{served.origin}/section/lawfulness")
    card = driver.find_element("css selector", ".question").get_attribute("id")
    Workspace.open(served.folder).answer(card, Answer.NO, author="B. Braun", reason="Looked again.")
    tick(driver, f'[id="{card}"]', "answer", "yes")
    status = wait(driver, lambda: driver.find_elements("css selector", f'[id="{card}"] .save.failed .status'))
    assert "Somebody else changed" in status[0].text
    assert (
        driver.find_element("css selector", f'[id="{card}"] textarea').get_attribute("value")
        == "Looked again."
    )
    assert Workspace.open(served.folder).entry(card).answer is Answer.NO
    tick(driver, f'[id="{card}"]', "answer", "yes")
    wait(driver, lambda: Workspace.open(served.folder).entry(card).answer is Answer.YES)


def test_without_script_the_button_saves(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served, driver = serve(profile="gdpr"), open_browser(script=False)
    enter(driver, served)
    driver.get(f"{served.origin}/section/lawfulness")
    card = driver.find_element("css selector", ".question").get_attribute("id")
    tick(driver, f'[id="{card}"]', "answer", "partly")
    driver.find_element("css selector", f'[id="{card}"] .save button').click()
    wait(driver, lambda: Workspace.open(served.folder).entry(card).answer is Answer.PARTLY)
    assert driver.current_url.endswith(f"#{card}")


def test_german_and_the_report_work_under_the_policy(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served, driver = serve(profile="gdpr"), open_browser()
    enter(driver, served)
    driver.find_element("css selector", "button[value=de]").click()
    wait(driver, lambda: driver.find_element("tag name", "html").get_attribute("lang") == "de")
    assert driver.find_element("tag name", "h1").text == "Über Ihre Klinik"  # scope questions come first
    driver.get(f"{served.origin}/report")
    assert driver.execute_script("return document.styleSheets[0].cssRules.length") > 20
    assert driver.find_element("css selector", ".figure .value").text == "0,00"
    assert not [m for m in driver.get_log("browser") if m["level"] == "SEVERE"]


def test_a_name_bound_to_this_computer_gets_nothing(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served = serve(profile="gdpr")
    driver = open_browser("--host-resolver-rules=MAP rebound.test 127.0.0.1")
    driver.get(served.address.replace("127.0.0.1", "rebound.test"))
    assert "answers only at its own address" in driver.page_source
    assert not driver.get_cookies()


def test_another_site_cannot_post_into_the_form(
    serve: Callable[..., Served], open_browser: Callable[..., Any]
) -> None:
    served, driver = serve(profile="gdpr"), open_browser()
    enter(driver, served)
    page = (
        f"<form method=post action='{served.origin}/scope/outside_union'><input name=applies value=no>"
        f"<input name=csrf value=x></form><script>document.forms[0].submit()</script>"
    ).encode()

    class Attacker(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Attacker)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        driver.get(f"http://127.0.0.1:{site.server_port}/")
        wait(driver, lambda: "only from this server" in driver.page_source)
    finally:
        site.shutdown()
        site.server_close()
    assert not Workspace.open(served.folder).assessment.scope


# --- without a browser ----------------------------------------------------------------------------


class Client:
    """The smallest client that the form takes for a browser."""

    def __init__(self, served: Served) -> None:
        self.origin = served.origin
        jar = urllib.request.HTTPCookieProcessor()
        self.opener = urllib.request.build_opener(jar)
        self.opener.open(served.address).read()
        page = self.opener.open(self.origin + "/").read().decode()
        self.csrf = page.split('name="csrf" value="')[1].split('"')[0]
        self.post("/who", name="Dr. S. Okafor")

    def post(self, path: str, **fields: str) -> Any:
        data = urllib.parse.urlencode({"csrf": self.csrf} | fields).encode()
        headers = {"origin": self.origin, "accept": "application/json"}
        return self.opener.open(urllib.request.Request(self.origin + path, data, headers), timeout=10)

    def answer(self, control: str, answer: str, version: str) -> tuple[int | None, Any]:
        """Status and content of a saved answer; None when the server is gone."""
        try:
            return 200, json.loads(self.post(f"/answer/{control}", answer=answer, version=version).read())
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, http.client.HTTPException, ValueError):
            return None, None


@pytest.mark.slow
def test_kill_at_many_moments_loses_at_most_the_answer_under_way(serve: Callable[..., Served]) -> None:
    from fedvox_compliance.web.state import version_of

    controls = list(load_catalogue("gdpr").controls)
    served = serve(profile="gdpr")
    acknowledged: dict[str, str] = {}
    unopened = version_of(None)
    for round_number in range(12):
        client = Client(served)
        threading.Timer(0.05 + 0.045 * round_number, served.kill).start()
        under_way = ""
        for control in controls:
            if control in acknowledged:
                continue
            answer = "partly" if len(acknowledged) % 2 else "yes"
            under_way = control
            code, found = client.answer(control, answer, unopened)
            if code is None:
                break
            if code == 409:  # written just before the last kill, but not acknowledged then
                entry = Workspace.open(served.folder).entry(control)
                assert entry.answer is not None
                acknowledged[control] = entry.answer.value
                continue
            assert found["saved"]
            acknowledged[control] = answer
        served.process.wait()
        state = Workspace.open(served.folder).assessment  # opens: nothing is half written
        kept = {i: e.answer.value for i, e in state.entries.items() if e.answer}
        assert acknowledged.items() <= kept.items()
        assert set(kept) - set(acknowledged) <= {under_way}
        served = serve(served.folder)
    assert len(acknowledged) > 12
    assert cli("history", served.folder) is not None


def test_the_address_with_its_token_is_not_in_the_process_list_nor_in_any_log(
    serve: Callable[..., Served],
) -> None:
    served = serve(profile="gdpr")
    Client(served)
    token = served.address.split("token=")[1]
    command = Path(f"/proc/{served.process.pid}/cmdline")
    if command.exists():
        assert token not in command.read_text()
    for file in served.folder.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes()
