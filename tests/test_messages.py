"""Results sent over the network: receivers that fail, come back, are slow or stay away; all on this machine."""

import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
from importlib import metadata
from queue import SimpleQueue

import paho.mqtt.client as paho
import pytest

from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.outputs import mqtt
from hpdval_edge.outputs.delivery import Away, Delivery, Refused
from hpdval_edge.outputs.messages import open_output
from hpdval_edge.outputs.mqtt import Mqtt
from hpdval_edge.outputs.record import record
from hpdval_edge.outputs.webhook import Webhook

QUICK = 0.01
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class Receiver:
    """A receiver whose every answer the test gives: None takes the message, an exception does not."""

    def __init__(self):
        self.offered, self.answers, self.stopped = SimpleQueue(), SimpleQueue(), threading.Event()

    def send(self, message):
        self.offered.put(message)
        answer = self.answers.get(timeout=30)
        if answer is not None:
            raise answer

    def next(self, answer=None):
        """The next message that is offered, answered with ``answer``."""
        message = self.offered.get(timeout=30)
        self.answers.put(answer)
        return message


@pytest.fixture
def receiver():
    return Receiver()


def deliver(receiver, **options):
    options = {"queue": 3, "first_wait": QUICK, "grace": 30, **options}
    return Delivery("here", receiver.send, receiver.stopped.set, **options)


def test_messages_arrive_in_order_whatever_happens_between(receiver, capsys):
    """Planted mistakes: the message that failed goes to the end, or is lost."""
    delivery = deliver(receiver)
    for number in range(3):
        delivery.put(b"%d" % number)
    taken = [receiver.next(answer) for answer in (Away("busy"), None, Away("busy"), Away("busy"), None, None)]
    assert taken == [b"0", b"0", b"1", b"1", b"1", b"2"]
    delivery.close()
    assert receiver.stopped.is_set()
    assert capsys.readouterr().err.splitlines() == [
        "hpedge: here: busy; trying again", "here: answers again",
        "hpedge: here: busy; trying again", "here: answers again",
        "here: 3 sent",
    ]  # fmt: skip


def test_while_the_receiver_is_away_the_oldest_are_dropped_and_counted(receiver, capsys):
    """Planted mistakes: put waits; the newest are dropped; nothing is said."""
    delivery = deliver(receiver)
    delivery.put(b"0")
    assert receiver.next(Away("gone")) == b"0"
    assert receiver.offered.get(timeout=30) == b"0"
    for number in range(1, 10):
        delivery.put(b"%d" % number)
    # The one under way comes back as the oldest and finds no room.
    receiver.answers.put(Away("gone"))
    assert [receiver.next() for _ in range(3)] == [b"7", b"8", b"9"]
    delivery.close()
    assert delivery.counts.sent == 3
    assert "here: 3 sent, 7 dropped" in capsys.readouterr().err


def test_a_slow_receiver_that_answers_loses_nothing(receiver):
    """Planted mistake: dropped as if it were away."""
    delivery = deliver(receiver)
    producer = threading.Thread(target=lambda: [delivery.put(b"%d" % number) for number in range(20)])
    producer.start()
    assert [receiver.next() for _ in range(20)] == [b"%d" % number for number in range(20)]
    producer.join(30)
    delivery.close()
    assert (delivery.counts.sent, delivery.counts.dropped) == (20, 0)


def test_a_refused_message_does_not_hold_the_rest_up(receiver, capsys):
    """Planted mistake: tried again for ever."""
    delivery = deliver(receiver)
    for number in range(3):
        delivery.put(b"%d" % number)
    assert [receiver.next(answer) for answer in (Refused("bad"), None, Refused("bad"))] == [b"0", b"1", b"2"]
    delivery.close()
    assert capsys.readouterr().err.splitlines() == ["hpedge: here refuses a result: bad", "here: 1 sent, 2 refused"]


def test_closing_gives_up_on_a_receiver_that_stays_away(receiver, capsys):
    """Planted mistakes: closing waits until somebody answers; the message under way is tried for ever, or forgotten."""
    delivery = deliver(receiver, queue=5, grace=QUICK)
    for _ in range(5):
        delivery.put(b"x")
    receiver.offered.get(timeout=30)
    delivery.close()
    assert "here: 0 sent, 5 dropped" in capsys.readouterr().err
    receiver.answers.put(Away("gone"))
    delivery.thread.join(30)
    assert not delivery.thread.is_alive()
    assert delivery.counts.dropped == 5


class Hook(http.server.BaseHTTPRequestHandler):
    """Answers with the next of the server's ``answers``, 204 when there are none left, and keeps what came."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.answers.pop(0) if self.server.answers else 204
        if status is None:
            self.close_connection = True
            return
        if status < 300:
            self.server.taken.append((self.path, dict(self.headers), json.loads(body)))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hook():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.answers, server.taken = [], []
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_that_fails_and_recovers_gets_every_result(make_result, two_labels, hook, monkeypatch, capsys):
    """500, a cut connection, 429, then well. Planted mistakes: an answer not read, which spoils the next one."""
    monkeypatch.setattr("hpdval_edge.outputs.delivery.FIRST_WAIT", QUICK)
    monkeypatch.setenv("HPEDGE_WEBHOOK_TOKEN", "s3cret")
    hook.answers += [500, None, 429, 204, 400]
    output = open_output(f"http://127.0.0.1:{hook.server_port}/in?key=s3cret", two_labels)
    results = [make_result(f"{number}.jpg") for number in range(4)]
    for result in results:
        output.write(result)
    output.close()
    assert [body for _, _, body in hook.taken] == [record(results[number], two_labels) for number in (0, 2, 3)]
    for path, headers, _ in hook.taken:
        assert path == "/in?key=s3cret"
        assert headers["Authorization"] == "Bearer s3cret"
        assert headers["Content-Type"] == "application/json"
    err = capsys.readouterr().err
    assert f"http://127.0.0.1:{hook.server_port}/in: 3 sent, 1 refused" in err
    assert "answered 400" in err
    assert "s3cret" not in err


@pytest.mark.parametrize(("answers", "code"), [([404, 404], 4), ([404, 204], 0)])
def test_results_of_which_none_arrived_are_an_error(run_hpedge, tiny, tiny_bundle, hook, answers, code):
    """Planted mistakes: an exit code of 0 for an address where nobody takes anything, of 4 for a single refusal."""
    hook.answers += answers
    address = f"http://127.0.0.1:{hook.server_port}/in"
    photos = [tiny / "test" / f"{number:02}.png" for number in range(2)]
    found, _, err = run_hpedge("infer", *photos, "--model", tiny_bundle, "--to", address)
    assert (found, "none of 2 results arrived" in err) == (code, code == 4)
    assert "2 of 2 pictures" in err


def test_secrets_come_from_files_as_well(make_result, two_labels, hook, monkeypatch, tmp_path):
    monkeypatch.setenv("HPEDGE_WEBHOOK_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(UsageError, match=r"HPEDGE_WEBHOOK_TOKEN_FILE=.*token cannot be read"):
        open_output(f"http://127.0.0.1:{hook.server_port}/", two_labels)
    (tmp_path / "token").write_text("from a file\n")
    output = open_output(f"http://127.0.0.1:{hook.server_port}", two_labels)
    output.write(make_result())
    output.close()
    assert [(path, headers["Authorization"]) for path, headers, _ in hook.taken] == [("/", "Bearer from a file")]


def test_an_https_receiver_is_checked(hook):
    """Planted mistake: a plain connection, or a certificate not asked for."""
    with pytest.raises(Away, match="no answer"):
        Webhook(f"https://127.0.0.1:{hook.server_port}/", None).send(b"{}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "--to ftp://host/x begins with none of http://, https://, mqtt://, mqtts://"),
        ("nonsense", "--to nonsense begins with none of"),
        ("https://me:s3cret@host/x", "--to https://host/x holds a password"),
        ("mqtt://me:s3cret@host/x", "--to mqtt://host/x holds a password"),
        ("http:///x", "--to http:///x names no host"),
        ("http://host:99999/x", "--to http://host:99999/x has no proper port"),
        ("http://host:0/x", "--to http://host:0/x has no proper port"),
        ("http://[::1/x", "--to http://[::1/x is no address; an IPv6 host stands in brackets"),
        ("mqtt://host", "--to mqtt://host names no topic"),
        ("mqtt://host/a/#", "names no topic"),
        ("mqtt://host/a+b", "names no topic"),
    ],
)
def test_urls_that_cannot_be_are_named_without_their_secrets(two_labels, url, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        open_output(url, two_labels)
    assert "s3cret" not in str(caught.value)


def test_without_paho_the_extra_is_named(two_labels, monkeypatch):
    monkeypatch.setattr(mqtt, "paho", None)
    with pytest.raises(MissingDependency, match=r"paho-mqtt is not installed.*hpdval-edge\[mqtt\]"):
        open_output("mqtt://host/topic", two_labels)


def test_another_package_brings_an_output(make_result, two_labels, tmp_path, monkeypatch):
    """Through its entry point, as pip installs it. Planted mistake: a scheme of ours is looked up there first."""
    information = tmp_path / "shouting-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[hpedge.outputs]\nshout = shouting_output:Shout\nmqtt = no:no\n")
    (tmp_path / "shouting_output.py").write_text(
        "class Shout:\n"
        "    pictures = False\n"
        "    def __init__(self, url, model):\n"
        "        self.url, self.model, self.seen = url, model, []\n"
        "    def write(self, result):\n"
        "        self.seen.append(result)\n"
        "    def close(self):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "shout" in metadata.entry_points(group="hpedge.outputs").names
    output = open_output("shout://loud", two_labels)
    output.write(make_result())
    output.close()
    assert (output.url, output.model, len(output.seen)) == ("shout://loud", two_labels, 1)
    assert type(open_output("mqtt://host/topic", two_labels).delivery).__name__ == "Delivery"


@pytest.fixture
def broker(tmp_path):
    """Starts a real mosquitto at a port of the system's choice, and again at the same one; stops it at the end."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto, an MQTT broker, is not installed (apt install mosquitto)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = []

    def start(settings="allow_anonymous true\n"):
        (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\n{settings}")
        process = subprocess.Popen(
            [MOSQUITTO, "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        while "running" not in (line := process.stderr.readline()):
            assert line, "mosquitto ended"
        return process

    start.port = port
    yield start
    for process in running:
        process.terminate()
        process.wait(30)
        process.stderr.close()


@pytest.fixture
def subscribed():
    """Subscribes to a broker's topics; returns the queue of (topic, record) that come."""
    clients = []

    def subscribe(port):
        came, ready = SimpleQueue(), threading.Event()
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        client.on_message = lambda client, data, message: came.put((message.topic, json.loads(message.payload)))
        client.on_subscribe = lambda *told: ready.set()
        client.connect("127.0.0.1", port)
        client.subscribe("#", qos=1)
        client.loop_start()
        clients.append(client)
        assert ready.wait(30)
        return came

    yield subscribe
    for client in clients:
        client.disconnect()
        client.loop_stop()


def test_a_broker_gets_the_records(make_result, two_labels, broker, subscribed, capsys):
    broker()
    came = subscribed(broker.port)
    output = open_output(f"mqtt://127.0.0.1:{broker.port}/cameras/front%20door", two_labels)
    results = [make_result("cam", index=number, time=float(number)) for number in range(5)]
    for result in results:
        output.write(result)
    output.close()
    expected = [("cameras/front door", record(result, two_labels)) for result in results]
    assert [came.get(timeout=30) for _ in results] == expected
    assert f"mqtt://127.0.0.1:{broker.port}/cameras/front%20door: 5 sent" in capsys.readouterr().err


def test_a_broker_that_goes_and_comes_back(two_labels, broker, subscribed):
    """Planted mistakes: the old client is asked again; a message counts as sent before the broker has confirmed it."""
    first = broker()
    client = Mqtt(f"mqtt://127.0.0.1:{broker.port}/t", None)
    client.send(b"1")
    first.terminate()
    first.wait(30)
    with pytest.raises(Away, match=r"lost|no connection"):
        client.send(b"2")
    broker()
    came = subscribed(broker.port)
    client.send(b"3")
    client.stop()
    assert came.get(timeout=30) == ("t", 3)


def test_a_broker_that_wants_a_password(broker):
    """Planted mistake: what the broker says is lost."""
    broker("allow_anonymous false\npassword_file /dev/null\n")
    client = Mqtt(f"mqtt://me@127.0.0.1:{broker.port}/t", "wrong")
    with pytest.raises(Away, match="the broker says not authorized"):
        client.send(b"1")
