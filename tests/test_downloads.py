"""Downloads of published weights: one sentence when they fail, at once when there is no network."""

import logging
import socket

import pytest
from huggingface_hub import constants

from hpdval_edge.errors import MissingDependency
from hpdval_edge.training import downloads
from hpdval_edge.training.downloads import downloading, reachable


def _network(monkeypatch, *, there):
    def resolve(host, port):
        if not there:
            raise socket.gaierror(-2, "Name or service not known")
        return [host]

    monkeypatch.setattr(downloads, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_without_a_network_nothing_is_tried(monkeypatch):
    """Planted mistakes: the hub's client left online (50 s of retries), its setting not put back."""
    _network(monkeypatch, there=False)
    with (
        pytest.raises(MissingDependency, match=r"^weights could not be downloaded \(no network\); bring the file\.$"),
        downloading("weights", remedy="bring the file"),
    ):
        assert constants.HF_HUB_OFFLINE
        assert not logging.getLogger("hub").isEnabledFor(logging.ERROR)
        raise OSError("a page\nof advice")
    assert not constants.HF_HUB_OFFLINE
    assert logging.getLogger("hub").isEnabledFor(logging.ERROR)


def test_with_a_network_the_first_line_of_the_reason_is_told(monkeypatch):
    _network(monkeypatch, there=True)
    with (
        pytest.raises(MissingDependency, match=r"\(404: no such file\); bring it\.$"),
        downloading("weights", remedy="bring it"),
    ):
        assert not constants.HF_HUB_OFFLINE
        raise RuntimeError("\n404: no such file.\nmore")


def test_a_proxy_resolves_names_for_us(monkeypatch):
    _network(monkeypatch, there=False)
    assert not reachable("https://hub.example/models")
    monkeypatch.setattr(downloads, "getproxies", lambda: {"https": "http://proxy.example"})
    assert reachable("https://hub.example/models")
