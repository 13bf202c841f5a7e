"""``hpedge serve`` on the command line: what it refuses before it serves."""

import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.hpedge"], "bundle absent.hpedge does not exist"),
        (["--token-file", "absent"], "--token-file absent cannot be read"),
        (["--edit", "--key", "absent"], "absent cannot be read: No such file or directory"),
        (["--edit", "--key", "short"], "--key short is no public Ed25519 key"),
        (["--token-file", "short"], "the token in short must be one word of at least 16 ASCII characters"),
        (["--host", "192.0.2.1"], " cannot be listened on (Cannot assign requested address)"),
        (["--max-queue", "8"], "may hold 32 pictures, but --max-queue 8"),
        (["--timeout", "0"], "Invalid value for '--timeout'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    run_hpedge, tiny_bundle, tmp_path, monkeypatch, arguments, sentence
):
    """Planted mistake: what is wrong with --key is told to the first client that sends a file."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    pytest.importorskip("cryptography", reason="the extra [labels] is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret")
    bundle = [] if "absent.hpedge" in arguments else [tiny_bundle]
    # So that what is let through ends as well.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = run_hpedge("serve", *bundle, "--port", taken.getsockname()[1], *arguments)
    assert (code, out) == (2, "")
    assert sentence in err and "Traceback" not in err


def test_a_port_that_is_taken_is_one_sentence(run_hpedge, tiny_bundle):
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run_hpedge("serve", tiny_bundle, "--port", port)
    assert code == 2
    assert f"127.0.0.1 port {port} cannot be listened on (Address already in use); choose others" in err


def test_without_the_extra_it_is_named():
    code = "import sys; sys.modules['fastapi'] = None; from hpdval_edge.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "serve"], capture_output=True, text=True)
    assert done.returncode == 4
    assert "pip install 'hpdval-edge[serve]'" in done.stderr
