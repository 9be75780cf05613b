"""A person's way through both UIs: fill the form, see the run, follow it into MLflow. Real servers, real Chromium.

Screenshots go to ``FEATHERWEIGHT_SCREENSHOTS``, or to pytest's temporary directory.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from prefect.client.orchestration import SyncPrefectClient

from tests import servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PATIENCE_MS = 90_000


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Running]:
    folder = tmp_path_factory.mktemp("uis")
    with servers.up(folder / "home", folder / "log") as running:
        yield running


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("FEATHERWEIGHT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield page
    page.close()


HOSTILE = """<!doctype html><title>tried nothing</title>
<form id="form" target="frame" method="post" enctype="text/plain" action="DEPLOYMENT/create_flow_run">
<input name='{"state": {"type": "SCHEDULED"}, "job_variables": {"command": "touch OWNED"}, "x": "' value='"}'></form>
<iframe name="frame"></iframe><iframe src="UI"></iframe>
<script>
const body = JSON.stringify({state: {type: "SCHEDULED"}, job_variables: {command: "touch OWNED"}})
const send = options => fetch("DEPLOYMENT/create_flow_run", {method: "POST", body, ...options}).catch(() => null)
const read = path => fetch("UI" + path).then(answer => answer.text()).then(text => "read: " + text).catch(() => "")
;(async () => {
  document.getElementById("form").submit()
  await send({mode: "no-cors"})
  await send({mode: "no-cors", credentials: "include"})
  await send({headers: {"Content-Type": "application/json"}})
  await send({headers: {"Content-Type": "application/json", Authorization: "Basic " + btoa("featherweight:guess")}})
  const socket = await new Promise(resolve => {
    const one = new WebSocket("UI/api/events/in".replace("http", "ws"))
    one.onopen = () => resolve("open")
    one.onerror = () => resolve("")
  })
  const read_ = (await read("/api/health")) + (await read("/ui-settings")) + socket
  await new Promise(resolve => setTimeout(resolve, 1000))
  document.title = "tried all: [" + read_ + "]"
})()
</script>
"""
"""A page of another origin, which a signed-in person happens to open."""


def test_a_hostile_page_starts_nothing_and_reads_nothing(day: servers.Running, page: Page, tmp_path: Path) -> None:
    sign_in(page, day)
    with SyncPrefectClient(day.api, auth_string=day.password) as client:
        deployment = client.read_deployment_by_name("compress/compress-smoke").id
        before = len(client.read_flow_runs())
        ui = day.api.removesuffix("/api")
        places = {"DEPLOYMENT": f"{day.api}/deployments/{deployment}", "UI": ui, "OWNED": str(tmp_path / "owned")}
        text = re.sub("DEPLOYMENT|OWNED|UI", lambda found: places[found[0]], HOSTILE)
        (tmp_path / "index.html").write_text(text, encoding="utf-8")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
            expect(page).to_have_title(re.compile("tried all"))
            server.shutdown()
        assert page.title() == "tried all: []"
        assert len(client.read_flow_runs()) == before
    assert not (tmp_path / "owned").exists()


def sign_in(page: Page, day: servers.Running) -> None:
    """By the link that ``up`` offers.

    Prefect's UI forgets the password when the request that checks it is cut off. A busy machine is silent for longer
    than "networkidle" waits before that request is sent; the menu is there once it was answered.
    """
    page.goto(day.sign_in)
    page.wait_for_url(lambda url: "/sign-in" not in url)
    expect(page.get_by_role("link", name="Deployments").first).to_be_visible()


def test_who_has_no_link_is_asked_for_the_password(day: servers.Running, page: Page) -> None:
    page.goto(f"http://127.0.0.1:{day.prefect}/deployments")
    expect(page.get_by_role("button", name="Login")).to_be_visible()
    page.goto(f"http://127.0.0.1:{day.prefect}/sign-in#featherweight:guess")
    expect(page.get_by_text("This link is not of this server")).to_be_visible()
    assert page.evaluate("localStorage.getItem('prefect-password')") is None


def test_the_ui_speaks_to_nobody_else(day: servers.Running, page: Page) -> None:
    sent: list[str] = []
    page.on("requestfailed", lambda request: sent.append(f"{request.url}: {request.failure}"))
    page.on("response", lambda response: sent.append(response.url))
    sign_in(page, day)
    for place in ("/v2/dashboard", "/deployments"):
        page.goto(f"http://127.0.0.1:{day.prefect}{place}")
        page.wait_for_load_state("networkidle")
    tried = [one for one in sent if not one.startswith((f"http://127.0.0.1:{day.prefect}/", "data:", "blob:"))]
    assert [one for one in tried if not one.endswith(": csp")] == []


def open_form(page: Page, day: servers.Running) -> None:
    """As a person gets there: signed in, deployments, smoke, Run, Custom run."""
    sign_in(page, day)
    page.goto(f"http://127.0.0.1:{day.prefect}/deployments")
    page.get_by_role("link", name="smoke").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("Row limit")).to_be_visible()


def field(page: Page, title: str) -> Locator:
    """The number input under a title; the innermost group that has the title is the field itself."""
    return page.locator(".schema-form-property", has_text=f"{title} (Optional)").last.locator("input")


def test_the_form_starts_from_the_recipe_and_refuses_what_is_out_of_bounds(
    day: servers.Running, page: Page, screenshots: Path
) -> None:
    open_form(page, day)
    expect(field(page, "Row limit")).to_have_value("400")
    page.screenshot(path=screenshots / "form.png")
    field(page, "Row limit").fill("-5")
    page.get_by_role("button", name="Submit").click()
    refusal = page.get_by_text("-5 is less than the minimum of 0").first
    expect(refusal).to_be_visible()
    refusal.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "refused.png")
    assert "/run" in page.url


def test_a_run_from_the_form_to_the_charts(day: servers.Running, page: Page, screenshots: Path) -> None:
    open_form(page, day)
    field(page, "Row limit").fill("300")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: "/run?" not in url)
    page.goto(f"http://127.0.0.1:{day.prefect}/runs")
    page.get_by_role("link", name=re.compile(r"smoke \d{4}-\d\d")).first.click(timeout=120_000)
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=600_000)
    page.reload()
    expect(page.get_by_text("train: computing").first).to_be_visible()
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
    expect(page.get_by_text("train-progress").first).to_be_visible()
    expect(page.get_by_text("smoke-verdict").first).to_be_visible()
    page.screenshot(path=screenshots / "prefect-run.png")

    link = page.get_by_role("link", name="Curves, figures and the report in MLflow").first
    expect(link).to_be_visible()
    address = link.get_attribute("href")
    assert address is not None
    assert address.startswith(f"http://127.0.0.1:{day.mlflow}/")
    page.goto(address)
    expect(page.get_by_text(re.compile(r"smoke \d{4}-\d\d")).first).to_be_visible()
    expect(page.get_by_text("demo:movie-snippets").first).to_be_visible()
    expect(page.get_by_role("link", name="The run in Prefect").first).to_be_visible()
    page.screenshot(path=screenshots / "mlflow-run.png")
    page.get_by_role("link", name=re.compile("^train")).first.click()
    page.get_by_text("Model metrics", exact=True).click()
    expect(page.locator(".js-plotly-plot, canvas, svg.main-svg").first).to_be_visible()
    page.wait_for_timeout(2000)
    page.screenshot(path=screenshots / "mlflow-charts.png")
