"""The operator's page: what it says is what the calls say, to whom it says it, and how it looks."""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from coordinator.administration_tokens import new_token
from coordinator.clock import Clock
from coordinator.store.format import describe_update
from coordinator.store.memory import MemoryCatalog
from coordinator.web import view
from coordinator.web.history import MAX_POINTS, History, thinned
from coordinator.web.reading import TASKS_PER_PAGE, VERSIONS_PER_PAGE
from coordinator.web.routes import COOKIE, HEADERS, MAX_FORM_BYTES
from share_dist.commands.console import jsonable
from share_dist.errors import ConfigError
from share_dist.wire.records import TokenRequest, UpdateState, VersionKind
from tests.coordinator.browser import a_browser
from tests.coordinator.support import (
    EMPTY,
    CoordinatorProcess,
    client_of,
    make_config,
    make_update,
    running,
    wait_until,
)

HOSTILE = [
    '<img src=x onerror="document.title=`owned`">',
    '"><script>document.title="owned"</script>',
    "\u202egnp.exe",
    "a" * 150,
    "{{ 7 * 7 }}",
    "cats & dogs",
]
ABOUT_NOW = 1_900_000_000.0
STOPPED = Clock(lambda: ABOUT_NOW, lambda: 1000.0)
"""A clock that stands: two answers agree to the last digit."""


def push_all(app, tasks, worker_id="north"):
    """Push one update of each task, each trained on the newest version; each makes a version."""
    with client_of(app.address, worker_id) as client:
        lease = client.register()
        for number, task_id in enumerate(tasks):
            update = make_update(
                task_id,
                f"{worker_id}-{number}-{task_id}"[:40],
                base=newest_of(app),
                lease_epoch=lease.lease_epoch,
                scores={"accuracy": 0.5 + number / 100},
            )
            client.push(update, wait="merged")


def newest_of(app, subspace=""):
    """The newest version with what is served of it."""
    snapshot = app.coordinator.lineages.get(subspace).writer.snapshot
    return snapshot.subspace.without_tail() if snapshot.version else EMPTY


def set_aside(app, task_id, state, reason, owner="west"):
    """Put an update beside the door, as admission or policy does."""
    update = make_update(task_id, f"aside-{task_id}", base=newest_of(app))
    described = describe_update(
        update,
        worker_id=owner,
        owner=owner,
        pushed_at=datetime.fromtimestamp(ABOUT_NOW, timezone.utc) - timedelta(hours=3),
        state=state,
        reason=reason,
    )
    app.coordinator.lineages.get("").store.add_update(described, by=owner)


@pytest.fixture(scope="module")
def stocked():
    """A coordinator with merged tasks of odd names, some set aside, and a second subspace."""
    config = make_config("unused", web_listen="127.0.0.1:0", subspaces={"vision": {}})
    with running(config, catalog=MemoryCatalog(), clock=STOPPED) as app:
        push_all(app, [*HOSTILE, "movies"])
        push_all(app, ["reuters", "tweets"], "south")
        set_aside(app, "odd", UpdateState.QUARANTINED, "norm of dW is 812.4, above <500>")
        set_aside(app, "shy", UpdateState.PARKED, "would move 'movies' by 0.31, its budget is 0.25")
        yield app


@pytest.fixture(scope="module")
def open_tab():
    with a_browser() as browser:
        yield browser


def fetch(url, *, method="GET", body=None, **headers):
    """Ask for a page; return its status code, headers and text, also of an error."""
    request = urllib.request.Request(
        url, body, {name.replace("_", "-"): value for name, value in headers.items()}, method=method
    )
    opener = urllib.request.build_opener(_Stay)
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


# --- what is drawn ------------------------------------------------------------------------------


def event_of(app, **changes):
    (event,) = app.coordinator.lineages.get("").store.events(0, 1)
    return replace(event, **changes)


def test_ten_thousand_versions_become_a_thousand_points(stocked):
    """Neighbours are joined; the worst of them is still to be seen, and none is lost."""
    history = History()
    history.extend(
        event_of(
            stocked,
            version=version,
            angle=1.5 if version == 7777 else 0.1,
            lowest_energy_kept=0.3 if version == 4242 else 0.9,
            largest_drift=9.0 if version == 9999 else 0.5,
            kind=VersionKind.ROLLBACK if version == 5000 else VersionKind.MERGE,
        )
        for version in range(1, 10_001)
    )
    points = thinned(history.points())
    assert len(points) <= MAX_POINTS
    assert sum(point.num_versions for point in points) == 10_000
    assert points[-1].version == 10_000
    assert max(point.angle for point in points) == 1.5
    assert min(point.lowest_energy_kept for point in points) == 0.3
    assert max(point.largest_drift for point in points) == 9.0
    assert [point.kind for point in points].count(VersionKind.ROLLBACK) == 1


@pytest.mark.parametrize("number", [0, 1, MAX_POINTS - 1, MAX_POINTS, MAX_POINTS + 1])
def test_few_versions_are_each_a_point(stocked, number):
    """Nothing is joined before it must be; no version at all is no point."""
    history = History()
    history.extend(event_of(stocked, version=version) for version in range(1, number + 1))
    points = thinned(history.points())
    assert sum(point.num_versions for point in points) == number
    assert len(points) == (number if number <= MAX_POINTS else -(-number // 2))


def test_an_event_that_is_known_is_taken_once(stocked):
    """Reading a stretch of the history twice changes nothing."""
    history = History()
    for _ in range(2):
        history.extend(event_of(stocked, version=version) for version in (1, 2, 3))
    assert [point.version for point in history.points()] == [1, 2, 3]


# --- JSON ---------------------------------------------------------------------------------------


def test_the_status_is_what_get_status_says(stocked):
    """/api/status is, field for field, what a client is answered."""
    code, headers, text = fetch(f"{stocked.web_address}api/status")
    assert (code, headers["content-type"]) == (200, "application/json")
    with client_of(stocked.address) as client:
        assert json.loads(text) == jsonable(client.status())


def test_tasks_and_subspaces_are_what_the_calls_say(stocked):
    """The same records, the same order."""
    with client_of(stocked.address) as client:
        tasks = client.tasks()
    assert json.loads(fetch(f"{stocked.web_address}api/tasks")[2]) == jsonable(tasks)
    subspaces = json.loads(fetch(f"{stocked.web_address}api/subspaces")[2])
    assert [each["name"] for each in subspaces] == ["default", "vision"]
    updates = json.loads(fetch(f"{stocked.web_address}api/updates")[2])
    assert [each["receipt"]["state"] for each in updates] == ["parked", "quarantined"]
    versions = json.loads(fetch(f"{stocked.web_address}api/versions")[2])
    assert [each["event"]["version"] for each in versions] == list(range(9, 0, -1))


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("?subspace=vison", 404, "vision"),
        ("?before=-1", 400, "before"),
        ("?before=1e9", 400, "before"),
        ("?before=" + "9" * 400, 400, "before"),
        ("api/nothing", 404, ""),
        ("api/status?subspace=vison", 404, "vision"),
        ("nothing", 404, ""),
        ("static/../routes.py", 404, ""),
        ("static/..%2f..%2fapp.py", 404, ""),
    ],
)
def test_what_is_not_there_is_said(stocked, path, code, said):
    """An unknown name, path or number is a letter with its status code, never a traceback."""
    found, headers, text = fetch(stocked.web_address + path)
    assert found == code
    assert said in text
    assert "Traceback" not in text
    assert headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["", "api/status", "static/page.js", "static/uPlot.iife.min.js"])
def test_every_answer_forbids_what_the_page_does_not_need(stocked, path):
    """No script, style or picture from elsewhere or inside the page; no frame; nothing is kept."""
    code, headers, _ = fetch(stocked.web_address + path)
    assert code == 200
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["", "api/status", "static/page.js"])
def test_nothing_can_be_changed(stocked, method, path):
    """The page is read-only: no path takes anything but a token."""
    assert fetch(stocked.web_address + path, method=method, body=b"")[0] == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
def test_a_foreign_name_that_points_here_gets_nothing(stocked, host):
    """On loopback only names of this machine are answered, whoever resolves to it."""
    code, _, text = fetch(stocked.web_address, Host=host)
    assert code == 421
    assert "movies" not in text


def test_ten_thousand_tasks_and_versions_are_paged():
    """The page of a long history stays small, and its links lead through all of it."""
    with running(make_config("unused", web_listen="127.0.0.1:0"), catalog=MemoryCatalog()) as app:
        push_all(app, ["cats"])
        lengthen(app, 10_000)
        _, _, text = fetch(app.web_address)
        assert len(text) < 500_000
        assert text.count("data-version=") == VERSIONS_PER_PAGE
        assert f"before={10_000 - VERSIONS_PER_PAGE + 1}" in text
        _, _, text = fetch(f"{app.web_address}?before=5")
        assert [f'data-version="{n}"' in text for n in range(6)] == [False, *[True] * 4, False]
        assert "older versions" not in text
        assert fetch(f"{app.web_address}?before=999999999")[2].count("data-version=") == 20


def lengthen(app, number):
    """Pretend that the newest version came about many times over."""
    lineage = app.coordinator.lineages.get("")
    newest = lineage.store._versions[-1]
    event = newest.commit.event
    lineage.store._versions += [
        replace(newest, commit=replace(newest.commit, event=replace(event, version=version)))
        for version in range(2, number + 1)
    ]
    snapshot = lineage.writer.snapshot
    lineage.writer.snapshot = replace(snapshot, subspace=replace(snapshot.subspace, version=number))


def test_tasks_go_on_after_the_last_name():
    """A page of tasks links to what follows, by name, also names that URLs treat specially."""
    with running(
        make_config("unused", web_listen="127.0.0.1:0", max_updates=200),
        catalog=MemoryCatalog(),
    ) as app:
        names = [f"task & {number:03}" for number in range(TASKS_PER_PAGE + 3)]
        for name in names:
            set_aside(app, name, UpdateState.PARKED, "too many")
        _, _, text = fetch(app.web_address)
        assert text.count("data-task=") == TASKS_PER_PAGE
        query = urllib.parse.urlencode({"subspace": "default", "after": names[TASKS_PER_PAGE - 1]})
        assert query.replace("&", "&amp;") in text
        assert fetch(f"{app.web_address}?{query}")[2].count("data-task=") == 3


# --- in a browser -------------------------------------------------------------------------------


def test_the_rows_are_what_the_calls_say(stocked, open_tab):
    """Tiles, tasks, workers and versions show what GetStatus, ListTasks and the lineage say."""
    tab = open_tab()
    tab.open(stocked.web_address)
    with client_of(stocked.address) as client:
        status, tasks = client.status(), client.tasks()
    assert tab.tile("Version") == str(status.current_version)
    assert tab.tile("Tasks") == str(status.num_tasks)
    assert tab.tile("Pending") == str(status.num_pending)
    assert tab.tile("Quarantined") == str(status.num_quarantined) == "1"
    assert tab.tile("Parked") == str(status.num_parked) == "1"
    rows = tab.cells("#tasks")
    assert [row[0] for row in rows] == [task.task_id for task in tasks]
    for row, task in zip(rows, tasks, strict=True):
        assert row[1:3] == [task.state.value, task.owner]
        assert row[3] == f"{task.scores['accuracy']:.3f}"
        drift = f"{task.cumulative_drift:.4f}" if task.merged_version else "-"
        assert row[4] == drift
    workers = tab.cells("#workers")
    assert [row[:2] for row in workers] == [
        [worker.worker_id, "live" if worker.is_live else "gone"] for worker in status.workers
    ]
    versions = tab.cells("#versions")
    events = stocked.coordinator.lineages.get("").store.events(0, 100)
    assert [row[0] for row in versions] == [str(event.version) for event in reversed(events)]
    assert [row[3] for row in versions] == [
        f"{100 * event.mean_energy_kept:.2f} %" for event in reversed(events)
    ]
    aside = tab.cells("#aside")
    assert [row[1] for row in aside] == ["parked", "quarantined"]
    assert aside[1][4] == "norm of dW is 812.4, above <500>"
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_charts_are_drawn(stocked, open_tab, scheme, tmp_path):
    """All four charts have ink, in both colour schemes, and no script complains."""
    tab = open_tab(color_scheme=scheme, viewport={"width": 1400, "height": 1000})
    tab.open(stocked.web_address)
    for chart in ("chart-energy", "chart-angle", "chart-factors", "chart-drift"):
        assert tab.inked(chart) > 1000
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(json.loads(ground[3:].replace("(", "[").replace(")", "]"))) < 60) == (
        scheme == "dark"
    )
    assert tab.complaints == []


def test_a_newer_update_of_a_task_is_shown_beside_what_is_merged(open_tab):
    """The row is told by what the newest version holds, and says that there is more."""
    config = make_config("unused", web_listen="127.0.0.1:0")
    with running(config, catalog=MemoryCatalog()) as app:
        push_all(app, ["cats", "dogs"])
        set_aside(app, "cats", UpdateState.PARKED, "would move 'dogs' by 0.31", "north")
        tab = open_tab()
        tab.open(app.web_address)
        states = {row[0]: row[1] for row in tab.cells("#tasks")}
        assert states == {"cats": "merged, newer parked", "dogs": "merged"}
        assert tab.complaints == []


def test_that_merging_fails_is_a_warning(monkeypatch):
    """Updates that wait for ever look like updates that wait, unless it is said."""

    def fail(*_args, **_named):
        raise RuntimeError("<b>no</b> such stride")

    config = make_config("unused", web_listen="127.0.0.1:0")
    with running(config, catalog=MemoryCatalog()) as app, client_of(app.address) as client:
        client.register()
        monkeypatch.setattr("coordinator.preparation.candidate_of_merge", fail)
        client.push(make_update("cats"))
        wait_until(lambda: client.status().merge_failure)
        _, _, text = fetch(app.web_address)
        assert "merging fails, and is tried again: RuntimeError: &lt;b&gt;no&lt;/b&gt;" in text


def test_hostile_names_are_only_text(stocked, open_tab):
    """No name of a task becomes markup, script or template, or turns the text around it."""
    tab = open_tab()
    tab.open(stocked.web_address)
    assert "owned" not in tab.page.title()
    assert tab.page.locator("main img").count() == 0
    assert tab.page.locator("main script:not([type='application/json'])").count() == 0
    shown = [row[0] for row in tab.cells("#tasks")]
    assert set(HOSTILE) <= set(shown)
    isolated = "bdi => getComputedStyle(bdi).unicodeBidi"
    assert tab.page.locator("#tasks bdi").first.evaluate(isolated) == "isolate"
    assert tab.complaints == []


def test_an_empty_coordinator_says_what_to_expect(open_tab):
    """Without any version every section says so; there is no chart and no complaint."""
    with running(make_config("unused", web_listen="127.0.0.1:0"), catalog=MemoryCatalog()) as app:
        tab = open_tab()
        tab.open(app.web_address)
        assert tab.tile("Version") == "0"
        assert tab.page.locator(".empty").count() == 5
        assert tab.page.locator("canvas").count() == 0
        assert tab.complaints == []


def test_the_page_keeps_up(open_tab):
    """What comes to be while the page is open is seen without a hand: numbers, rows and charts."""
    with running(make_config("unused", web_listen="127.0.0.1:0"), catalog=MemoryCatalog()) as app:
        tab = open_tab()
        tab.page.clock.install()
        tab.open(app.web_address)
        push_all(app, ["cats"])
        tab.page.clock.fast_forward(6000)
        tab.page.wait_for_selector("tr[data-task=cats]")
        assert tab.tile("Version") == "1"
        assert tab.inked("chart-energy") > 100
        tab.page.evaluate("window.notReloaded = true")
        push_all(app, ["dogs"])
        tab.page.clock.fast_forward(6000)
        tab.page.wait_for_selector("tr[data-task=dogs]")
        assert json.loads(tab.page.inner_html("#points"))["version"] == [1, 2]
        assert tab.page.evaluate("window.notReloaded")
        assert tab.complaints == []


def test_a_narrow_screen_scrolls_tables_and_not_the_page(stocked, open_tab):
    """On a telephone the page is as wide as the screen; only wide tables scroll."""
    tab = open_tab(viewport={"width": 390, "height": 800})
    tab.open(stocked.web_address)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.complaints == []


# --- who may see it -----------------------------------------------------------------------------


@pytest.fixture
def guarded():
    """A coordinator that wants tokens, with one for each role that counts."""
    catalog = MemoryCatalog()
    config = make_config(
        "unused", web_listen="127.0.0.1:0", require_token=True, subspaces={"vision": {}}
    )
    with running(config, catalog=catalog) as app:
        secrets = {}
        for name, request in {
            "reader": TokenRequest("rita", "reader", ("default",)),
            "elsewhere": TokenRequest("vera", "reader", ("vision",)),
        }.items():
            made = new_token(request, datetime.now(timezone.utc))
            catalog.add_token(made.record, by="test")
            app.coordinator.access.remember(made.record.token)
            secrets[name] = made
        yield app, secrets


def test_a_reader_signs_in_and_out(guarded, open_tab):
    """Without a token there is a form; a wrong one is refused by name; a right one shows the page."""
    app, secrets = guarded
    tab = open_tab()
    tab.open(f"{app.web_address}?subspace=default")
    assert "movies" not in tab.page.content()
    tab.page.fill("#token", "sd_nothing_of_the_kind")
    tab.page.click("button")
    assert "not known here" in tab.page.inner_text("[role=alert]")
    tab.page.fill("#token", secrets["reader"].secret)
    tab.page.click("button")
    assert tab.tile("Version") == "0"
    assert tab.page.inner_text(".reader bdi") == "rita"
    assert tab.page.locator("header nav a").count() == 1
    (cookie,) = tab.page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (COOKIE, True, "Strict")
    tab.page.click("text=Sign out")
    tab.page.wait_for_selector("#token")
    assert tab.page.context.cookies() == []
    assert [text for text in tab.complaints if "401" not in text] == []


def test_a_token_counts_in_a_header_and_only_where_it_says(guarded):
    """A script shows it as a bearer; elsewhere it is refused; each refusal is in the audit log."""
    app, secrets = guarded
    url = f"{app.web_address}api/status"
    assert fetch(url)[0] == 401
    shown = {who: f"Bearer {made.secret}" for who, made in secrets.items()}
    assert fetch(url, Authorization=shown["reader"])[0] == 200
    assert fetch(f"{url}?subspace=vision", Authorization=shown["reader"])[0] == 403
    assert fetch(url, Authorization=shown["elsewhere"])[0] == 403
    assert fetch(url, Authorization="Bearer sd_x_y")[0] == 401
    assert fetch(url, Authorization="Basic cmVhZGVyOg==")[0] == 401
    wait_until(lambda: len(refusals(app)) >= 4)
    assert {entry.subject for entry in refusals(app)} == {"GET /api/status"}


def refusals(app):
    entries = app.coordinator.catalog.audit(0, 1000)
    return [entry for entry in entries if entry.action == "access_refused"]


def test_a_revoked_token_ends_the_visit(guarded):
    """A cookie that held a good token is worth nothing once the token is revoked."""
    app, secrets = guarded
    made = secrets["reader"]
    cookie = f"{COOKIE}={made.secret}"
    assert fetch(app.web_address, Cookie=cookie)[0] == 200
    revoked = app.coordinator.catalog.revoke_token(
        made.record.token.token_id, at=datetime.now(timezone.utc), by="test"
    )
    app.coordinator.access.remember(revoked)
    code, _, text = fetch(app.web_address, Cookie=cookie)
    assert code == 401
    assert "revoked" in text


@pytest.mark.parametrize(
    "target", ["//evil.example/", "https://evil.example/", "/\\evil.example", "evil", "/a\r\nb: c"]
)
def test_signing_in_leads_nowhere_else(guarded, target):
    """After signing in one is on this site, whatever the form was made to say."""
    app, secrets = guarded
    body = urllib.parse.urlencode({"token": secrets["reader"].secret, "target": target}).encode()
    code, headers, _ = fetch(f"{app.web_address}sign-in", method="POST", body=body)
    assert (code, headers["location"]) == (303, "/")


def test_a_form_that_is_too_long_is_not_read(guarded):
    """More bytes than any token has are refused before they are kept."""
    app, _ = guarded
    body = b"token=" + b"a" * MAX_FORM_BYTES
    assert fetch(f"{app.web_address}sign-in", method="POST", body=body)[0] == 413


# --- where it is served -------------------------------------------------------------------------


def test_it_is_off_unless_asked_for(tmp_path):
    """A coordinator that was not told to serve the page serves none."""
    with running(make_config(tmp_path / "unused"), catalog=MemoryCatalog()) as app:
        assert app.web_address is None


def test_a_signal_ends_the_whole_process(tmp_path):
    """The page takes no signal for itself: SIGTERM ends the coordinator in order, with its page."""
    with CoordinatorProcess(tmp_path / "store", "--web-listen", "127.0.0.1:0") as process:
        assert fetch(process.ready["web_address"])[0] == 200
        assert process.stop() == 0
        assert "coordinator_stopped" in process.stderr


def test_beyond_this_machine_it_is_asked_for_in_so_many_words():
    """Any other address than loopback is refused, unless --insecure says so."""
    with pytest.raises(ConfigError, match="web_listen"):
        make_config("unused", web_listen="0.0.0.0:8080")
    assert make_config("unused", web_listen="0.0.0.0:8080", insecure=True).web_listen


def test_a_port_that_is_taken_is_a_letter(stocked):
    """The second page on one port is refused before anything is served."""
    taken = urllib.parse.urlsplit(stocked.web_address).netloc
    with (
        pytest.raises(ConfigError, match=f"web_listen is '{taken}'"),
        running(make_config("unused", web_listen=taken), catalog=MemoryCatalog()),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (2**60, "1,048,576 TiB")]
)
def test_sizes_have_units(number, text):
    """A size is a number that one can grasp, and its unit."""
    assert view.as_bytes(number) == text
