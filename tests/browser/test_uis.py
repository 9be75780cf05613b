"""A person's way through both UIs: fill the form, see the run, follow it into MLflow. Real servers, real Chromium.

Screenshots go to ``FEATHERWEIGHT_SCREENSHOTS``, or to pytest's temporary directory.
"""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from prefect.client.orchestration import SyncPrefectClient

from flows.recipe import Recipe
from tests import servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PATIENCE_MS = 90_000
LONGEST_RUN_S = 900


@pytest.fixture(scope="module")
def outside() -> Iterator[tuple[str, list[str]]]:
    """A proxy for what leaves this machine, and all that was asked of it; it answers nothing."""
    asked: list[str] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(502)

        do_CONNECT = do_GET = do_HEAD = do_POST = refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


EARLIER = """
from tasks.engine import disk, tracking
from tasks.ml.data import sources

for recipe in ("films", "books"):
    with tracking.pipeline_run(recipe, {}, run_name=f"{recipe} run"):
        pass
sources.read("demo:movie-snippets", text="text", label="label", cache=disk.home() / "cache")
"""
"""Runs that were there before, and the demo's data, which its servers could not fetch any more."""


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory, outside: tuple[str, list[str]]) -> Iterator[servers.Running]:
    folder = tmp_path_factory.mktemp("uis")
    environment = servers.environment(folder / "home")
    subprocess.run([sys.executable, "-c", EARLIER], env=environment, cwd=servers.ROOT, check=True)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), outside[0])
    with servers.up(folder / "home", folder / "log", **proxies) as running:
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


AUTOFILL = "content-autofill.googleapis.com:443"
"""What Chromium itself asks about any page with a form."""

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
    than "networkidle" waits before that request is sent; the deployments are there once it was answered.
    """
    page.goto(day.sign_in)
    page.wait_for_url(lambda url: "/sign-in" not in url)
    expect(page.get_by_role("link", name="smoke").first).to_be_visible()


def test_who_has_no_link_is_asked_for_the_password(day: servers.Running, page: Page) -> None:
    page.goto(f"http://127.0.0.1:{day.prefect}/deployments")
    expect(page.get_by_role("button", name="Login")).to_be_visible()
    page.goto(f"http://127.0.0.1:{day.prefect}/sign-in#featherweight:guess")
    expect(page.get_by_text("This link is not of this server")).to_be_visible()
    assert page.evaluate("localStorage.getItem('prefect-password')") is None


def said_page(day: servers.Running, name: str) -> str:
    """The address that ``up`` printed of a server."""
    (address,) = re.findall(rf"^{name}: (http\S+)$", day.said(), re.MULTILINE)
    return str(address)


def test_the_addresses_lead_to_deployments_and_runs_and_nothing_leaves_this_machine(
    day: servers.Running, chromium: Browser, outside: tuple[str, list[str]], screenshots: Path
) -> None:
    """What pages, their workers and the servers ask of a proxy would leave."""
    proxy = {"server": outside[0], "bypass": "127.0.0.1"}
    with chromium.new_context(viewport={"width": 1400, "height": 1000}, proxy=proxy) as context:
        page = context.new_page()
        expect.set_options(timeout=PATIENCE_MS)
        page.goto(day.sign_in)
        expect(page.get_by_role("link", name="smoke").first).to_be_visible()
        assert page.url.startswith(said_page(day, "prefect"))
        page.screenshot(path=screenshots / "deployments.png")
        page.goto(said_page(day, "mlflow"))
        expect(page.get_by_text("films run").first).to_be_visible()
        expect(page.get_by_text("books run").first).to_be_visible()
        expect(page.get_by_role("link", name="Model registry")).to_be_visible()
        expect(page.get_by_text("collects usage data")).to_have_count(0)
        page.screenshot(path=screenshots / "runs.png")
        page.goto(f"http://127.0.0.1:{day.mlflow}/")
        page.wait_for_timeout(35_000)  # MLflow's worker for usage data speaks every 30 s
    assert {one.rpartition(" ")[2] for one in outside[1]} - {AUTOFILL} == set()
    with urllib.request.urlopen(f"{day.tracking}/ajax-api/3.0/mlflow/ui-telemetry") as answer:
        assert json.load(answer)["disable_ui_telemetry"] is True


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


def open_form(page: Page, day: servers.Running, deployment: str = "compress-smoke", shown: str = "Row limit") -> None:
    """As a person gets there: signed in, deployments, the one of this name, Run, Custom run."""
    sign_in(page, day)
    page.goto(f"http://127.0.0.1:{day.prefect}/deployments")
    page.get_by_role("link", name=deployment).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text(shown)).to_be_visible()


def field(page: Page, title: str) -> Locator:
    """The input under a title; the innermost group that has the title is the field itself."""
    return page.locator(".schema-form-property", has_text=f"{title} (Optional)").last.locator("input, textarea")


def open_run(page: Page, day: servers.Running, recipe: str) -> None:
    """Waits for the run of a recipe and opens its page, which would take half a core to draw meanwhile."""
    page.goto("about:blank")
    deadline = time.monotonic() + LONGEST_RUN_S
    with SyncPrefectClient(day.api, auth_string=day.password) as client:
        while not (ended := [run for run in client.read_flow_runs() if is_of(run, recipe) and run.state.is_final()]):
            assert time.monotonic() < deadline, f"no run of {recipe} ended"
            time.sleep(2)
    page.goto(f"http://127.0.0.1:{day.prefect}/runs/flow-run/{ended[0].id}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()


def is_of(run: Any, recipe: str) -> bool:
    """Whether a run has begun, and is of a recipe: then it has its name."""
    return run.state is not None and run.name.startswith(f"{recipe} ")


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
    open_run(page, day, "smoke")
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


MOST_FIELDS = 90
SHALLOW = 2
"""Layers of a model that learns in seconds, and is large enough for the budget of a goal."""


def test_every_field_of_a_recipe_is_in_a_form_of_ninety(day: servers.Running, page: Page) -> None:
    open_form(page, day)
    inputs = page.locator(
        ".schema-form-property input, .schema-form-property textarea, .schema-form-property .p-select"
    )
    expect(inputs.nth(20)).to_be_visible()
    assert 60 < inputs.count() <= MOST_FIELDS


def with_few_layers(folder: Path) -> Path:
    """The demo's base model without its upper layers."""
    from tasks.ml.models import locators, modeling, tokenization
    from tasks.ml.problems import text_classification
    from tasks.ml.pruning import surgery

    whole = locators.locate(Recipe().base_model)
    model = surgery.keep_layers(text_classification.load_base(whole, ["bad", "good"]), list(range(SHALLOW)))
    modeling.save(model, tokenization.load(whole), folder)
    return folder


def test_from_a_table_to_a_champion_through_the_everyday_form(
    day: servers.Running, page: Page, screenshots: Path, tmp_path: Path
) -> None:
    table, base = tmp_path / "opinions.csv", with_few_layers(tmp_path)
    words = Path(__file__).read_text(encoding="utf-8").split()[:40]
    rows = [
        f'"{one} {telling} {other}",{opinion}'
        for one, other in itertools.product(sorted({word.strip(',"') for word in words if word.isalpha()}), repeat=2)
        for telling, opinion in (("wonderful", "good"), ("dreadful", "bad"))
    ]
    table.write_text("\n".join(["opinion;stars", *(row.replace('",', '";') for row in rows)]) + "\n", encoding="utf-8")

    open_form(page, day, "compress-my-data", "make_champion")
    fields = page.locator(".schema-form-property")
    first, last = (box for box in (fields.first.bounding_box(), fields.last.bounding_box()) if box)
    assert fields.count() <= 12
    assert last["y"] + last["height"] - first["y"] <= 1000, "all fields are on one screen"
    for title, value in {
        "name": "opinions", "data": f"file:{table}", "text_column": "opinion", "label_column": "stars",
        "base_model": str(base), "largest_drop_in_points": "10",
    }.items():  # fmt: skip
        field(page, title).fill(value)
    fields.first.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "everyday.png")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: "/run?" not in url)
    open_run(page, day, "opinions")
    page.screenshot(path=screenshots / "everyday-run.png")
    page.goto(f"http://127.0.0.1:{day.mlflow}/#/models/opinions")
    expect(page.get_by_text("champion").first).to_be_visible()
