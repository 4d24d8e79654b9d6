"""The review page in a real browser: a case is found, looked at and decided with the keyboard alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.integration
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--window-size=1360,900",
)
SERVE = (
    "from fedvox.cli import run_command; from fedvox.commands.curate_review import serve; run_command(serve)"
)


@pytest.fixture
def served(collection):
    command = [sys.executable, "-c", SERVE, str(collection.folder), "--as", "Ada", "--role", "lead"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        collection.address = process.stdout.readline().strip()
        yield collection
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def open_browser(tmp_path):
    if CHROMIUM is None or DRIVER is None:
        assert "CI" not in os.environ, "chromium and chromium-driver must be installed for this test"
        pytest.skip("chromium and chromium-driver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    drivers = []

    def run():
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / f'profile-{len(drivers)}'}"):
            options.add_argument(flag)
        downloads = {"download.default_directory": str(tmp_path / "downloads")}
        options.add_experimental_option("prefs", downloads)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        drivers.append(webdriver.Chrome(options=options, service=Service(DRIVER)))
        return drivers[-1]

    yield run
    for driver in drivers:
        with contextlib.suppress(Exception):
            driver.quit()


def wait(driver, condition, seconds=20):
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError(
        f"timed out at {driver.current_url}: {text(driver, 'status')!r}, {driver.get_log('browser')}"
    )


def text(driver, name):
    return driver.find_element("id", name).text


def press(driver, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def enter(driver, address):
    driver.get(address)
    wait(driver, lambda: driver.find_elements("id", "planes"))
    wait(driver, lambda: "of 3 done" in text(driver, "budget-text"))


def drawn(driver, case_id, z, y, x):
    """Wait until the three planes show a case at a voxel."""
    for name, index in (("axial", z), ("coronal", y), ("sagittal", x)):
        canvas = driver.find_element("id", name)
        wait(driver, lambda: canvas.get_attribute("data-drawn") == f"{case_id}/{index}")  # noqa: B023


def seen(driver, name):
    """Where on a canvas the liver (orange) and the spleen (blue) are: shares of width and height, or None."""
    script = (
        "const c = document.getElementById(arguments[0]);"
        "const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const at = [[], []];"
        "for (let i = 0; i < p.length; i += 4) { const [r, g, b] = [p[i], p[i + 1], p[i + 2]];"
        "  if (r === 255 && g === 224 && b === 102) continue;"  # the crosshair
        "  const place = [(i / 4 % c.width) / c.width, Math.floor(i / 4 / c.width) / c.height];"
        "  if (r - b > 60) at[0].push(place); if (b - r > 60) at[1].push(place); }"
        "return at.map(v => v.length > 50 ? [0, 1].map(k => v.reduce((s, q) => s + q[k], 0) / v.length) : null);"
    )
    return driver.execute_script(script, name)


def check_accessible(driver):
    """Everything that can be used has a name, is reached with Tab, and is readable in light and dark."""
    script = (
        "return [...document.querySelectorAll('button, input, select, textarea, a, canvas, dialog, progress')]"
        ".filter(e => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()"
        "  || (e.labels && [...e.labels].some(l => l.textContent.trim())))).map(e => e.outerHTML);"
    )
    assert driver.execute_script(script) == []
    backwards = "return [...document.querySelectorAll('[tabindex]')].filter(e => e.tabIndex > 0).length"
    assert driver.execute_script(backwards) == 0
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for selector in (
            "h1",
            ".soft",
            "#findings button",
            "#accept",
            "#status",
            ".read-out label",
            "#budget-text",
        ):
            assert contrast(driver, selector) >= 4.5, (scheme, selector)


def contrast(driver, selector):
    """WCAG contrast of an element's text with what lies behind it."""
    values = driver.execute_script(
        "const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
        "const rgba = v => { c.clearRect(0, 0, 1, 1); c.fillStyle = v; c.fillRect(0, 0, 1, 1);"
        "  return [...c.getImageData(0, 0, 1, 1).data]; };"
        "const e = document.querySelector(arguments[0]); let b = e;"
        "while (b.parentElement && rgba(getComputedStyle(b).backgroundColor)[3] < 255) b = b.parentElement;"
        "return [rgba(getComputedStyle(e).color), rgba(getComputedStyle(b).backgroundColor)];",
        selector,
    )

    def luminance(rgb):
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(v[:3]) for v in values), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_case_is_reviewed_with_the_keyboard_alone(served, open_browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = open_browser()
    enter(driver, served.address)
    press(driver, "?")
    wait(driver, lambda: driver.find_element("id", "help-dialog").is_displayed())
    assert "accept the chosen version" in text(driver, "help-dialog")
    press(driver, Keys.ESCAPE)

    press(driver, "n")
    wait(driver, lambda: text(driver, "case-name") == "case_1")
    drawn(driver, "case_1", 9, 12, 15)
    liver, spleen = seen(driver, "axial")
    assert liver[0] < 0.45  # on the patient's right, which is the picture's left
    assert spleen is None  # as the label has it

    press(driver, "f")  # the spleen that is missing: the crosshair goes to where the consensus has it
    wait(driver, lambda: "spleen, missing" in text(driver, "status"))
    wait(driver, lambda: "spleen" not in text(driver, "under") and "x 15" not in text(driver, "under"))
    z, y, x = _place(text(driver, "under"))
    assert served.organs()[z, y, x] == 2
    assert "expected mm3 870" in text(driver, "evidence")
    drawn(driver, "case_1", z, y, x)

    press(driver, "v")  # the next version: the label is the last in the list, so the newest proposal comes
    wait(driver, lambda: "4 staple: spleen" in text(driver, "under"))
    wait(driver, lambda: seen(driver, "axial")[1])
    liver, spleen = seen(driver, "axial")
    assert spleen[0] > 0.55  # on the patient's left
    assert spleen[1] > liver[1] + 0.05  # and behind the liver: further down
    assert seen(driver, "coronal")[1][0] > 0.55
    press(driver, "d", "o", "]", "w", "L", "p", "+")
    wait(driver, lambda: "Window" in text(driver, "status"))
    press(driver, "0")
    canvas = driver.find_element("id", "axial")
    across, down = seen(driver, "axial")[1]
    size = canvas.size
    offset = round((across - 0.5) * size["width"]), round((down - 0.5) * size["height"])
    ActionChains(driver).move_to_element_with_offset(canvas, *offset).click().perform()
    wait(driver, lambda: abs(_place(text(driver, "under"))[1] - 8) <= 1)
    z, y, x = _place(text(driver, "under"))
    assert abs(x - 6) <= 1  # the middle of the spleen

    press(driver, "1", Keys.ARROW_LEFT, ".")
    drawn(driver, "case_1", z + 1, y, x + 1)  # the patient's right is on the left
    assert driver.switch_to.active_element.get_attribute("aria-label") == f"axial plane, slice {z + 2} of 18"

    press(driver, "v")  # version 3
    press(driver, "v")  # version 2
    wait(driver, lambda: text(driver, "accept-text") == "Choose 2")
    press(driver, "a")
    wait(driver, lambda: text(driver, "case-name") == "case_2")
    assert served.store.case("case_1").head == 2
    assert text(driver, "budget-text").startswith("1 of 3 done, mine 1")

    press(driver, "u")  # undo, then reject instead
    wait(driver, lambda: text(driver, "case-name") == "case_1")
    assert served.store.case("case_1").head == 1
    press(driver, "r")
    wait(driver, lambda: driver.find_element("id", "reason").is_displayed())
    press(driver, "no spleen", Keys.TAB, Keys.ENTER)
    wait(driver, lambda: [r.decision for r in served.store.reviews()] == ["accept", "reject"])
    assert served.store.reviews()[-1].reason == "no spleen"
    assert all(0 < review.seconds < 60 for review in served.store.reviews())

    check_accessible(driver)
    severe = [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
    assert not severe, severe
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    origin = served.address.split("/?")[0]
    assert len(urls) > 10
    assert not [u for u in urls if not u.startswith((origin, "data:", "chrome:", "about:"))]


def _place(under):
    words = under.split()
    return [int(words[words.index(axis) + 1]) for axis in "zyx"]


def test_of_two_browsers_on_one_case_the_second_sees_the_conflict_and_chooses(served, open_browser):
    ada, bo = open_browser(), open_browser()
    token = served.store.people.admit("Bo", "reviewer", actor="test")
    enter(ada, served.address)
    enter(bo, f"{served.address.split('/?')[0]}/?token={token}")
    press(ada, "n")
    press(bo, "n")
    wait(ada, lambda: text(ada, "case-name") == "case_1")
    wait(bo, lambda: text(bo, "case-name") == "case_2")  # not the same one

    press(bo, "g")
    wait(bo, lambda: bo.find_element("id", "case-id").is_displayed())
    press(bo, "case_1\n")
    wait(bo, lambda: text(bo, "case-name") == "case_1")
    press(bo, "v")
    wait(bo, lambda: text(bo, "accept-text") == "Choose 4")
    press(bo, "a")
    wait(bo, lambda: served.store.case("case_1").head == 4)

    press(ada, "a")  # accepts what is not the label any more
    wait(ada, lambda: ada.find_element("id", "conflict-dialog").is_displayed())
    assert "Bo: accept, version 4" in text(ada, "conflict-text")
    assert "spleen" in text(ada, "conflict-changes")
    assert served.store.case("case_1").head == 4
    press(ada, "\n")  # look at it again
    wait(ada, lambda: not ada.find_element("id", "conflict-dialog").is_displayed())
    wait(ada, lambda: "4 – consensus staple (the label)" in text(ada, "versions"))
    press(ada, "a")
    wait(ada, lambda: len(served.store.reviews()) == 2)
    assert [(r.reviewer, r.result) for r in served.store.reviews()] == [("Bo", 4), ("Ada", 4)]


def test_an_edit_goes_out_and_comes_back_and_only_visible_time_is_counted(served, open_browser, tmp_path):
    driver = open_browser()
    enter(driver, served.address)
    press(driver, "n")
    wait(driver, lambda: text(driver, "case-name") == "case_1")
    press(driver, "e")
    wait(driver, lambda: driver.find_element("id", "task").is_displayed())
    driver.find_element("id", "task").click()
    archive = tmp_path / "downloads" / "case_1.zip"
    wait(driver, archive.is_file)
    shutil.unpack_archive(archive, tmp_path)
    exported = nib.load(tmp_path / "case_1/labels/original/case_1.nii.gz")

    edited = tmp_path / "edited.nii.gz"
    nib.save(nib.Nifti1Image(served.organs().transpose(2, 1, 0), exported.affine + np.eye(4, k=3)), edited)
    choose = driver.find_element("id", "edited")
    choose.send_keys(str(edited))
    wait(driver, lambda: "lies elsewhere" in text(driver, "edit-problem"))
    right = tmp_path / "again.nii.gz"
    nib.save(nib.Nifti1Image(served.organs().transpose(2, 1, 0), exported.affine), right)
    choose.send_keys(str(right))
    wait(driver, lambda: driver.find_element("id", "confirm-edit").is_enabled())
    assert "spleen" in text(driver, "edit-changes")
    shown = driver.execute_script("return performance.now()")
    driver.switch_to.new_window("tab")
    time.sleep(2)
    driver.switch_to.window(driver.window_handles[0])
    driver.find_element("id", "confirm-edit").click()
    wait(driver, lambda: served.store.case("case_1").head == 5)
    whole = driver.execute_script("return performance.now()")
    assert 0 < served.store.reviews()[0].seconds < (whole - 2000) / 1000
    assert whole - shown > 2000
    assert np.array_equal(served.store.read_mask(served.store.version("case_1", 5)), served.organs())
