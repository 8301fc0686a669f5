"""What is set aside, refused and registered is bounded, and can be seen by who has to make room."""

import contextlib
from pathlib import Path

import pytest

from coordinator.leases import Registrations
from coordinator.store import MemoryCatalog
from share_dist.client import AdminClient
from share_dist.errors import LeaseExpired, Overloaded, TooManySetAside, UpdateRefused
from share_dist.wire.records import UpdateState
from tests.coordinator.store_support import add
from tests.coordinator.support import (
    FINGERPRINT,
    client_of,
    make_config,
    make_update,
    running,
    wait_until,
)


def serving(catalog=None, **config):
    """A coordinator that quarantines every push of norm 1 or more."""
    options = {"quarantine_norm": 1.0} | config
    return running(make_config(Path("unused"), **options), catalog=catalog or MemoryCatalog())


@contextlib.contextmanager
def worker_of(app, worker_id="w"):
    """A client that has registered."""
    with client_of(app.address, worker_id) as client:
        client.register()
        yield client


def push_odd(client, name, **options):
    return client.push(make_update(name, f"u-{name}", lease_epoch=0, **options))


def test_the_number_of_what_is_set_aside_is_bounded():
    """One more is refused with the bound and the way out; dropping one makes room."""
    with (
        serving(max_set_aside_updates=2) as app,
        worker_of(app, "v") as one,
        worker_of(app, "w") as two,
        AdminClient(app.address) as operator,
    ):
        assert push_odd(one, "ants").state is UpdateState.QUARANTINED
        assert push_odd(two, "bees").state is UpdateState.QUARANTINED
        with pytest.raises(TooManySetAside, match="share-dist updates list") as full:
            push_odd(two, "cats")
        assert (full.value.key, full.value.limit) == ("max_set_aside_updates", 2)
        assert push_odd(one, "calm", scale=1e-3).state is UpdateState.PENDING
        operator.drop_update("u-ants")
        assert push_odd(two, "cats").state is UpdateState.QUARANTINED


def test_one_worker_cannot_take_all_the_room():
    """Where nobody has a name a worker is bounded; another one still finds room."""
    with (
        serving(max_set_aside_updates_per_owner=1) as app,
        worker_of(app, "v") as one,
        worker_of(app, "w") as two,
    ):
        push_odd(one, "ants")
        with pytest.raises(TooManySetAside, match="1 updates of 'v'") as full:
            push_odd(one, "bees")
        assert full.value.key == "max_set_aside_updates_per_owner"
        assert push_odd(two, "cats").state is UpdateState.QUARANTINED


@pytest.mark.parametrize("key", ["max_set_aside_bytes", "max_set_aside_bytes_per_owner"])
def test_the_bytes_of_what_is_set_aside_are_bounded(key):
    """An update that is too large for the room that is left is refused."""
    with (
        serving(**{key: 1}) as app,
        worker_of(app) as client,
        pytest.raises(TooManySetAside) as full,
    ):
        push_odd(client, "ants")
    assert full.value.key == key
    assert full.value.found > 1


def test_a_push_that_might_be_set_aside_later_is_refused_by_its_header():
    """Where the writer sets aside what was let in, nothing is let in beyond the bound."""
    catalog = MemoryCatalog()
    store = catalog.create("default", by="root")
    store.bind(FINGERPRINT, by="w")
    add(store, make_update("ants", "u1"), state=UpdateState.QUARANTINED)
    with (
        serving(catalog, quarantine_norm=None, max_set_aside_updates=1, max_influence=0.5) as app,
        worker_of(app) as client,
        pytest.raises(TooManySetAside),
    ):
        push_odd(client, "bees", scale=1e-3)


def test_what_was_refused_can_be_listed():
    """With its reason, newest first, in the list of all; what only has to wait is not among it."""
    with (
        serving(quarantine_norm=None, max_norm=1.0, max_refused_updates=2) as app,
        worker_of(app) as client,
        AdminClient(app.address) as operator,
    ):
        push_odd(client, "calm", scale=1e-3)
        for name in ("ants", "bees", "cats"):
            with pytest.raises(UpdateRefused):
                push_odd(client, name)
        refused = operator.updates([UpdateState.REFUSED])
        assert [update.receipt.update_id for update in refused] == ["u-cats", "u-bees"]
        assert {update.receipt.state for update in refused} == {UpdateState.REFUSED}
        assert refused[0].receipt.reason.startswith("UpdateRefused: ")
        assert (len(refused[0].digest), refused[0].update_bytes > 0) == (64, True)
        listed = [update.receipt.update_id for update in operator.updates()]
        assert listed == ["u-cats", "u-bees", "u-calm"]
        paged = [*operator.updates(limit=1), *operator.updates(limit=3)]
        assert [update.sequence for update in paged] == [4, 4, 3, 1]

        def lines():
            return [line for line in operator.audit() if line.action == "update_refused"]

        wait_until(lambda: len(lines()) == 3)
        assert [line.subject for line in lines()] == ["u-ants", "u-bees", "u-cats"]
        assert lines()[-1].digest == refused[0].digest
        assert "UpdateRefused" in lines()[-1].detail
        assert lines()[-1].principal == "local"


def test_a_refusal_by_the_header_alone_is_listed_too():
    """What the sender announced is told: nothing else of it has come."""
    with (
        serving() as app,
        worker_of(app) as client,
        AdminClient(app.address) as operator,
    ):
        with pytest.raises(LeaseExpired):
            client.push(make_update("ants", "u1", lease_epoch=99))
        (refused,) = operator.updates([UpdateState.REFUSED])
        assert (refused.receipt.update_id, refused.task_id) == ("u1", "ants")
        assert refused.receipt.reason.startswith("LeaseExpired: ")
        assert (len(refused.digest), refused.update_bytes > 0) == (64, True)


def test_who_registers_again_and_again_is_asked_to_wait():
    """Each registration costs a line and perhaps a row; nothing is written beyond the bound."""
    with serving(max_registrations_per_hour=3) as app, AdminClient(app.address) as operator:
        for number in range(3):
            with client_of(app.address, f"w{number}") as client:
                client.register()
        with (
            client_of(app.address, "w3", timeout_seconds=1.0) as client,
            pytest.raises(Overloaded, match="keep its worker_id") as full,
        ):
            client.register()
        assert full.value.retry_after_seconds > 3000
        registered = [line for line in operator.audit() if line.action == "worker_registered"]
        assert len(registered) == 3


def test_registrations_are_counted_for_each_principal_within_an_hour():
    """What lies an hour back counts no more, and others have room of their own."""
    registrations = Registrations(2)
    registrations.take("v", 0.0)
    registrations.take("v", 10.0)
    with pytest.raises(Overloaded) as full:
        registrations.take("v", 100.0)
    assert full.value.retry_after_seconds == 3500.0
    registrations.take("w", 100.0)
    registrations.take("v", 3600.0)
    with pytest.raises(Overloaded):
        registrations.take("v", 3605.0)
