"""Results as MQTT messages."""

import contextlib
from queue import Empty, SimpleQueue
from urllib.parse import unquote

from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.outputs.delivery import Away
from hpdval_edge.outputs.messages import Messages, message_output, secret, split_url, without_secrets
from hpdval_edge.outputs.output import ModelInfo

try:
    import paho.mqtt.client as paho
except ImportError:
    paho = None

TIMEOUT = 10.0
PORTS = {"mqtt": 1883, "mqtts": 8883}


class Mqtt:
    """Publishes to one topic at least once (QoS 1): a message counts as sent when the broker has confirmed it."""

    def __init__(self, url: str, password: str | None, timeout: float = TIMEOUT) -> None:
        parts = split_url(url)
        # All behind the host, for # and ? are no parts of a topic's URL.
        self.topic = unquote("".join(url.split("/", 3)[3:])).strip("/")
        if not self.topic or any(sign in self.topic for sign in "#+\0"):
            raise UsageError(
                f"--to {without_secrets(url)} names no topic to publish to; write e.g. mqtt://broker/cameras/door."
            )
        self.host, self.port = parts.hostname, parts.port or PORTS[parts.scheme]
        self.encrypted = parts.scheme == "mqtts"
        self.user = unquote(parts.username) if parts.username else None
        self.password, self.timeout = password, timeout
        self.client: paho.Client | None = None
        # What the broker answered, from the client's thread: None for yes, else why not.
        self.answers: SimpleQueue[str | None] = SimpleQueue()

    def send(self, message: bytes) -> None:
        """Publish one message; Away as Delivery wants it."""
        try:
            if self.client is None:
                self._connect()
            self.client.publish(self.topic, message, qos=1)
            self._await_answer()
        except (OSError, ValueError, RuntimeError, Away) as error:
            self.stop()
            raise error if isinstance(error, Away) else Away(f"no connection ({error})") from error

    def _connect(self) -> None:
        # This class tries again itself: a client that does would also send what it holds twice.
        client = self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        answers = self.answers = SimpleQueue()
        client.on_connect = lambda client, data, flags, reason, properties: answers.put(
            f"the broker says {str(reason).lower()}" if reason.is_failure else None
        )
        client.on_publish = lambda *told: answers.put(None)
        client.on_disconnect = lambda *told: answers.put("the connection was lost")
        client.connect_timeout = self.timeout
        if self.user is not None:
            client.username_pw_set(self.user, self.password)
        if self.encrypted:
            client.tls_set()
        client.connect(self.host, self.port)
        client.loop_start()
        self._await_answer()

    def _await_answer(self) -> None:
        try:
            answer = self.answers.get(timeout=self.timeout)
        except Empty:
            raise Away(f"no answer within {self.timeout:g} s") from None
        if answer is not None:
            raise Away(answer)

    def stop(self) -> None:
        """Leave the broker."""
        if self.client is not None:
            with contextlib.suppress(OSError, ValueError):
                self.client.disconnect()
            self.client.loop_stop()
            self.client = None


def open_mqtt(url: str, model: ModelInfo) -> Messages:
    """``mqtt[s]://[USER@]HOST[:PORT]/TOPIC``, with the password in HPEDGE_MQTT_PASSWORD or HPEDGE_MQTT_PASSWORD_FILE.

    Raises:
        MissingDependency: paho-mqtt is not installed.
    """
    if paho is None:
        raise MissingDependency("paho-mqtt is not installed; run: pip install 'hpdval-edge[mqtt]'.")
    client = Mqtt(url, secret("HPEDGE_MQTT_PASSWORD"))
    return message_output(url, client.send, client.stop, model)
