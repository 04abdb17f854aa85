"""The page in a real browser: start a run, watch it, end it."""

from __future__ import annotations

import shutil

import httpx
import pytest

from .server import PATIENCE_S
from .service import TOKEN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
async def tab():
    """A tab of a headless Chromium; what it complains of fails the test."""
    api = pytest.importorskip("playwright.async_api", reason="the PyPI package playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    async with api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = await browser.new_page(viewport={"width": 1100, "height": 900})
        tab.set_default_timeout(1000 * PATIENCE_S)
        complaints = []
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        yield tab
        await browser.close()
        assert complaints == []


async def test_a_run_is_started_watched_and_ended_by_clicking(server, tmp_path, tab):
    await tab.goto(f"{server.url}/page?token={TOKEN}")
    await tab.locator("#entrypoint option").first.wait_for(state="attached")
    await tab.select_option("#entrypoint", "drip")
    await tab.fill("#n_replicas", "1")
    await tab.fill("#args", "{no JSON")
    await tab.click("#launch")
    await tab.locator("#refused", has_text="JSON").wait_for()
    await tab.fill("#args", f'{{"directory": "{tmp_path}"}}')
    await tab.click("#launch")
    await tab.wait_for_url("**/runs/run-*/page?token=*")
    for step, loss in enumerate(("1.000", "0.5000", "0.3333")):
        (tmp_path / f"step-{step}").touch()
        await tab.locator("#replicas tr td:nth-child(7)", has_text=loss).wait_for()
    await tab.locator("#replicas tr td:nth-child(2)", has_text="running").wait_for()
    await tab.locator("#state", has_text="running").wait_for()
    tab.on("dialog", lambda dialog: dialog.accept())
    await tab.click("#cancel")
    await tab.locator("#state", has_text="cancelled").wait_for()
    await tab.locator("#replicas tr td:nth-child(2)", has_text="cancelled").wait_for()
    run_id = tab.url.split("/runs/")[1].split("/")[0]
    assert server.client.get(f"/runs/{run_id}").json()["state"] == "cancelled"


async def test_a_finished_run_shows_its_losses_and_how_it_ended(server, finished, tab):
    await tab.goto(f"{server.url}/runs/{finished}/page?token={TOKEN}")
    await tab.locator("#state", has_text="succeeded").wait_for()
    await tab.locator("#replicas tr:nth-child(2) td:nth-child(5)", has_text="20").wait_for()
    assert await tab.locator("#cancel").is_disabled()
    drawn = (
        "id => { const c = document.getElementById(id); return c.getContext('2d').getImageData(0, 0, c.width, c.height)"
    )
    for canvas in ("loss", "rounds"):
        colours = await tab.evaluate(
            f"{drawn}.data.reduce((all, x, i) => i % 4 == 3 ? all + (x > 0) : all, 0); }}", canvas
        )
        assert colours > 500


def test_the_page_is_for_those_who_are_let_in_and_loads_nothing(server, finished):
    for path in ("/page", f"/runs/{finished}/page"):
        assert httpx.get(server.url + path).status_code == 401
        answer = server.client.get(path)
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert server.client.get("/runs/no-such-run/page").status_code == 404
