"""A configuration says at once, and by name, what cannot be used."""

import re

import pytest

from coordinator.config import CoordinatorConfig, load_config, split_address
from share_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense = 1", "unknown key 'nonsense' in .*: the README has a table"),
        ("[subspaces.cats]\nlisten = '127.0.0.1:1'", "unknown key 'listen' in .*whole coordinator"),
    ],
)
def test_an_unknown_key_is_answered_with_what_helps(tmp_path, text, said):
    """A key that is near, or its right place; nothing far-fetched, least of all 'insecure'."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config({"store": str(tmp_path)}, file, {})


def test_flags_win_over_environment_over_file_over_default(tmp_path):
    """Four sources, one order."""
    file = tmp_path / "coordinator.toml"
    file.write_text('store = "from-file"\nnum_factors = 7\noversample = 8\nmax_updates = 9\n')
    config = load_config(
        {"num_factors": 1, "listen": None},
        file,
        {"SHARE_DIST_NUM_FACTORS": "2", "SHARE_DIST_OVERSAMPLE": "3", "SHARE_DIST_FAULT": "x"},
    )
    assert (config.num_factors, config.oversample, config.max_updates) == (1, 3, 9)
    assert str(config.store) == "from-file"
    assert config.listen == CoordinatorConfig.model_fields["listen"].default


def test_an_unknown_key_is_refused_with_the_nearest_known(tmp_path):
    """A typing error in a file does not become a default that nobody asked for."""
    file = tmp_path / "c.toml"
    file.write_text('store = "s"\nnum_factor = 7\n')
    with pytest.raises(ConfigError, match=r"unknown key 'num_factor' in .*did you mean 'num_fac"):
        load_config({}, file, {})


@pytest.mark.parametrize(
    ("values", "key", "sentence"),
    [
        ({}, "store", "store is missing: give --store"),
        ({"store": "s", "num_factors": 0}, "num_factors", "num_factors is 0: input should be"),
        ({"store": "s", "energy": 1.5}, "energy", "energy is 1.5"),
        ({"store": "s", "metric": "cosine"}, "metric", "metric is 'cosine'"),
        ({"store": "s", "listen": "here"}, "listen", "give host:port"),
        ({"store": "s", "listen": "1.2.3.4:99999"}, "listen", "give host:port"),
    ],
)
def test_bad_values_are_named(values, key, sentence):
    """The key, what was read, and what would be right."""
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        load_config(values, environment={})
    assert caught.value.key == key


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.5:1", "example.org:1"])
@pytest.mark.parametrize("key", ["listen", "metrics_listen"])
def test_beyond_this_machine_only_when_told(key, listen):
    """Nothing is served to a network without encryption unless --insecure says so."""
    values = {"store": "s", key: listen}
    with pytest.raises(ConfigError, match="pass --insecure if the network itself is trusted"):
        load_config(values, environment={})
    assert getattr(load_config(values | {"insecure": True}, environment={}), key) == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_permission(listen):
    """All names of this machine are loopback."""
    assert load_config({"store": "s", "listen": listen}, environment={}).listen == listen


def test_files_that_cannot_be_read(tmp_path):
    """A missing file and a file that is no TOML are both said."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config({}, tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("store = ")
    with pytest.raises(ConfigError, match="is no TOML file"):
        load_config({}, tmp_path / "bad.toml", {})


def test_addresses_are_split_at_the_last_colon():
    """IPv6 hosts stand in brackets."""
    assert split_address("[fe80::1]:5") == ("fe80::1", 5)
    assert split_address("host:0") == ("host", 0)


def test_every_key_says_what_it_is():
    """The table of keys in the README is made of these descriptions."""
    assert all(field.description for field in CoordinatorConfig.model_fields.values())
