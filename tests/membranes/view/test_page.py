"""The page of a run, in a browser."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echoc.membranes.view.page import html
from echoc.membranes.view.trace import Fired, Frame, Header, Membrane, Total, TraceWriter

HOSTILE = "</script><script>window.bad = 1</script><img src=x onerror='window.bad = 2'><!--<script>"


def written(path: Path, frames: list[Frame], rules: tuple[str, ...] = ()) -> Path:
    with TraceWriter(path, Header(HOSTILE, HOSTILE, rules=rules, source=HOSTILE)) as out:
        out.write_all(frames)
        out.end(halted=True, reason="no rule applies", message=HOSTILE)
    html(path, path.with_suffix(".html"))
    return path.with_suffix(".html")


def tree() -> list[Frame]:
    def cells(k: int) -> Iterator[Membrane]:
        yield Membrane(0, "1", 0, None, {"c": 2**60 + 1, HOSTILE: 1})
        for i in range(1, 1 + 2**k):
            yield Membrane(i, HOSTILE if i == 1 else "2", (1, -1)[i % 2], 0, {"needle": 1} if k == 3 else {"r": k + 1})

    return [Frame(k, tuple(cells(k)), {"yes": 1}, applied=(Fired(0, (0,), k + 1),) if k else ()) for k in range(6)]


def browser_missing() -> str:
    """Why no browser can be driven, or nothing."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return "chromium and chromedriver are not installed"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return ""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    missing = browser_missing()
    if missing:
        if os.environ.get("ECHOC_REQUIRE_BROWSER") == "1":
            pytest.fail(f"ECHOC_REQUIRE_BROWSER=1, but {missing}")
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --window-size=1260,900 --user-data-dir={profile}"
    ).split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path) -> Any:
    browser.get_log("browser")
    browser.get(page.as_uri())
    return lambda css: browser.find_elements("css selector", css)


def quiet(browser: Any) -> None:
    """Nothing hostile ran and the console is empty."""
    assert browser.execute_script("return window.bad === undefined")
    assert browser.get_log("browser") == []


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)


def test_the_slider_the_keys_and_play(browser: Any, tmp_path: Path) -> None:
    find = opened(browser, written(tmp_path / "t", tree(), ("[a --> " + HOSTILE + "]'1",)))
    (where,), (slider,), (play,) = find("#where"), find("#step"), find("#play")
    assert where.text == "step 0, 2 membranes" and find("h1")[0].text == HOSTILE
    assert len(find("#tree .membrane")) == 2 and find(".minus .head")[0].text.startswith(HOSTILE)
    assert find("#environment")[0].text == "yes" and find("#applied")[0].text == "the start"
    assert "1152921504606846977" in find("#counts")[0].text, "a count beyond 2**53 is exact"

    browser.execute_script("arguments[0].value = 3; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert where.text == "step 3, 9 membranes"
    assert find("#applied li")[0].text.startswith("4 ×") and HOSTILE in find("#applied li")[0].text
    assert [e.text for e in find(".times")] == ["×4", "×3"], "equal membranes are one box"
    find("#find")[0].send_keys("needle")
    assert find("#found")[0].text == "1 found" and len(find("#tree .hit")) == 3
    slider.send_keys("\ue014")  # right arrow
    assert where.text.startswith("step 4") and find("#found")[0].text == "not here"

    assert play.get_attribute("aria-label") == "Play"
    play.click()
    assert play.get_attribute("aria-pressed") == "true"
    wait_for(lambda: where.text.startswith("step 5"))
    wait_for(lambda: play.get_attribute("aria-pressed") == "false")
    browser.execute_script("document.activeElement.blur()")
    browser.switch_to.active_element.send_keys("\ue011")  # Home
    assert where.text.startswith("step 0")
    assert len(find("#chart path.curve")) == len(find("#keys .key")) == 5
    browser.save_screenshot(str(tmp_path / "tree.png"))
    assert (tmp_path / "tree.png").stat().st_size > 10_000
    quiet(browser)


def test_a_graph(browser: Any, tmp_path: Path) -> None:
    cells = tuple(Membrane(i, "t", i % 2, None, {"a": i + 1}, HOSTILE if i == 0 else f"c{i}") for i in range(5))
    find = opened(browser, written(tmp_path / "t", [Frame(0, cells, links=((0, 1), (1, 2), (2, 2)))]))
    assert len(find("#tree circle")) == 5 and len(find("#tree path.link")) == 2, "a loop has no line"
    assert [e.text for e in find("#tree .rules li")] == [f"{HOSTILE} → c1", "c1 → c2", "c2 → c2"]
    quiet(browser)


def test_values_and_totals(browser: Any, tmp_path: Path) -> None:
    values = [Frame(k, values={HOSTILE: k / 4, "y": float("nan")}) for k in range(3)]
    find = opened(browser, written(tmp_path / "v", values))
    assert [e.text for e in find("#tree td")] == [HOSTILE, "0", "y", "not finite"]
    quiet(browser)
    find = opened(browser, written(tmp_path / "c", [Frame(7, counts={HOSTILE: Total(10**6, {"r": 9})})]))
    assert find("#where")[0].text == "step 7, 1000000 membranes" and find(".times")[0].text == "×1000000"
    quiet(browser)


def test_a_long_and_a_deep_run_are_cut_with_a_notice(browser: Any, tmp_path: Path) -> None:
    long = [Frame(k, (Membrane(0, "1", objects={"a": k + 1}),), time=k / 2) for k in range(3000)]
    find = opened(browser, written(tmp_path / "l", long))
    assert "of 3000 configurations" in find("#notice")[0].text
    browser.find_element("css selector", "body").send_keys("\ue010")  # End
    assert find("#where")[0].text == "step 2999, time 1499.5"
    quiet(browser)
    deep = [Frame(0, tuple(Membrane(i, "m", 0, i - 1 if i else None) for i in range(3000)))]
    find = opened(browser, written(tmp_path / "d", deep))
    assert find(".more")[-2].text == "+ 2976 membranes inside"
    quiet(browser)


def test_the_page_is_one_safe_file(tmp_path: Path) -> None:
    text = written(tmp_path / "t", tree(), (HOSTILE,)).read_text()
    assert text.count("<script") == 2 and text.count("</script") == 2 and "<img" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "default-src 'none'" in text
