"""Several named subspaces in one coordinator: apart in everything, ended and opened again together."""

from dataclasses import replace

import pytest

from coordinator.config import load_config
from share_dist.core.values import Fingerprint, LayerShape, Subspace
from share_dist.errors import ConfigError, MalformedMessage, UnknownSubspace
from tests.coordinator.support import FINGERPRINT, client_of, make_config, make_update, running

OTHER_SHAPES = {"decoder.key": LayerShape(7, 9)}
OTHER = Fingerprint("1" * 64, OTHER_SHAPES)
OTHER_EMPTY = Subspace.empty(OTHER_SHAPES)


def client_of_other(address, worker_id="w"):
    client = client_of(address, worker_id, subspace="vision")
    client.fingerprint = OTHER
    return client


def test_two_subspaces_share_nothing_but_the_coordinator(tmp_path):
    """Each has its own model, versions, tasks, updates and leases, under the same names."""
    with (
        running(make_config(tmp_path)) as app,
        client_of(app.address) as text,
        client_of_other(app.address) as vision,
    ):
        text.register()
        vision.register()
        text.push(make_update("cats", "u1", lease_epoch=0), wait="merged")
        text.push(make_update("dogs", "u2", lease_epoch=0), wait="merged")
        update = make_update("cats", "u1", base=OTHER_EMPTY, lease_epoch=0)
        assert vision.push(update, wait="merged").version == 1
        assert text.status().current_version == 2
        assert [task.task_id for task in vision.tasks()] == ["cats"]
        assert set(vision.pull().layers) == {"decoder.key"}
        assert vision.status().digest != text.status().digest
        assert vision.status().store_id == text.status().store_id


def test_every_subspace_of_the_store_is_served_again(tmp_path):
    """A coordinator that starts again serves what it served before, named in its keys or not."""
    with running(make_config(tmp_path)) as app, client_of_other(app.address) as vision:
        vision.register()
        vision.push(make_update("cats", base=OTHER_EMPTY, lease_epoch=0), wait="merged")
        digest = vision.status().digest
    with running(make_config(tmp_path)) as app, client_of_other(app.address) as vision:
        assert (vision.status().current_version, vision.status().digest) == (1, digest)


def test_a_subspace_has_its_own_keys_over_those_at_the_top(tmp_path):
    """What a subspace says for itself wins; what it does not say is as at the top."""
    config = make_config(tmp_path, subspaces={"vision": {"num_factors": 2}})
    with running(config) as app, client_of_other(app.address) as vision:
        vision.register()
        update = make_update(
            "cats", base=OTHER_EMPTY, num_temporary=4, pseudo_rank=4, lease_epoch=0
        )
        vision.push(update, wait="merged")
        assert vision.pull().num_factors == 2
    assert config.subspace("vision").oversample == config.oversample
    assert config.subspace("default").num_factors == config.num_factors


def test_a_subspace_that_is_not_there_is_said_with_those_that_are(tmp_path):
    """Whoever asks for a name that nobody serves is told of near ones."""
    with (
        running(make_config(tmp_path, subspaces={"vision": {}})) as app,
        client_of(app.address, subspace="vison") as client,
        pytest.raises(UnknownSubspace, match="vision"),
    ):
        client.status()


def test_a_name_that_can_be_none_makes_nothing(tmp_path):
    """Registering under a name with a slash or a space is refused, and no subspace is made."""
    with running(make_config(tmp_path)) as app:
        for name in ("a/b", "a b", "a\nb", "x" * 101):
            with pytest.raises((ConfigError, MalformedMessage)):
                client_of(app.address, subspace=name).register()
        assert app.coordinator.catalog.names() == ("default",)


def test_the_metric_of_a_subspace_is_its_own(tmp_path):
    """A subspace that was told another metric refuses a worker of the default one."""
    config = make_config(tmp_path, subspaces={"vision": {"metric": "factors"}})
    with running(config) as app, client_of_other(app.address) as vision:
        vision.register(fingerprint=replace(OTHER, metric="factors"))
    with running(config) as app, client_of(app.address) as client:
        client.register(fingerprint=FINGERPRINT)
        assert app.coordinator.lineages.get("vision").store.fingerprint().metric == "factors"


def test_a_key_that_no_subspace_has_is_refused():
    """A misspelt key of a subspace is named with its nearest, before anything starts."""
    with pytest.raises(ConfigError, match=r"num_factor.*\[subspaces.vision\].*num_factors"):
        load_config({"store": "x", "subspaces": {"vision": {"num_factor": 3}}}, environment={})
    with pytest.raises(ConfigError, match="listen"):
        load_config({"store": "x", "subspaces": {"vision": {"listen": "x:1"}}}, environment={})
