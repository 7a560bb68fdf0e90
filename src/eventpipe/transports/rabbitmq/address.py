"""Where a broker is and how to get in, read from a URL."""

import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ...errors import ConfigurationError

N = TypeVar("N", int, float)

_PORTS = {"amqp": 5672, "amqps": 5671}
_KNOWN = {"heartbeat", "connection_timeout", "cacertfile", "cafile", "certfile", "keyfile", "name_prefix"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One broker's address. ``str()`` of it never shows the password. Times are in seconds.

    ``prefix`` goes before every exchange and queue name, for tests that share a virtual host.
    """

    scheme: str
    host: str
    port: int
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    heartbeat: int
    timeout: float
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        vhost = "" if self.vhost == "/" else f"/{quote(self.vhost, safe='')}"
        return f"{self.scheme}://{self.user}@{host}:{self.port}{vhost}"

    def aiormq_url(self, name: str) -> str:
        """Give the URL in the form that aiormq reads."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        query = f"heartbeat={self.heartbeat}&name={quote(name, safe='')}"
        return f"{self.scheme}://{login}@{host}:{self.port}/{quote(self.vhost, safe='')}?{query}"

    def tls(self) -> ssl.SSLContext | None:
        """Give a context that verifies the broker's certificate and host name; no URL can switch that off."""
        if self.scheme != "amqps":
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self}: its certificate files can't be used: {error}") from error
        return context


def parse(url: str, *, heartbeat: int, timeout: float) -> Address:
    """Read an ``amqp://`` or ``amqps://`` URL (RabbitMQ's URI specification). Raises ``ConfigurationError``."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"a broker URL can't be read: {error}") from None
    if parts.scheme not in _PORTS:
        raise ConfigurationError(
            f"a broker URL begins with {parts.scheme!r}: write amqp://host, amqps://host, or memory:// alone"
        )
    if not parts.hostname:
        raise ConfigurationError(f"a broker URL has no host: write {parts.scheme}://host")
    query = _query(parts.query)
    if parts.username is None and not _is_loopback(parts.hostname):
        raise ConfigurationError(
            f"a broker URL for {parts.hostname} names no user, and guest is for loopback only: "
            f"write {parts.scheme}://user:password@{parts.hostname}"
        )
    return Address(
        scheme=parts.scheme,
        host=unquote(parts.hostname),
        port=port or _PORTS[parts.scheme],
        user=unquote(parts.username) if parts.username else "guest",
        password=unquote(parts.password) if parts.password is not None else "guest",
        vhost=unquote(parts.path[1:]) or "/",
        heartbeat=_number(query, "heartbeat", heartbeat),
        timeout=_number(query, "connection_timeout", timeout),
        cafile=query.get("cacertfile") or query.get("cafile"),
        certfile=query.get("certfile"),
        keyfile=query.get("keyfile"),
        prefix=query.get("name_prefix", ""),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _query(text: str) -> dict[str, str]:
    query = dict(parse_qsl(text, keep_blank_values=True))
    for name, value in query.items():
        if name in ("no_verify_ssl", "verify") and value not in ("0", "verify_peer"):
            raise ConfigurationError(f"{name}={value}: TLS is always verified; give a private CA with cacertfile=…")
        if name not in _KNOWN and name not in ("no_verify_ssl", "verify"):
            raise ConfigurationError(
                f"a broker URL has the unknown parameter {name!r}; known are {', '.join(sorted(_KNOWN))}"
            )
    return query


def _number(query: dict[str, str], name: str, default: N) -> N:
    text = query.get(name)
    if text is None:
        return default
    try:
        return type(default)(text)
    except ValueError:
        raise ConfigurationError(f"a broker URL has {name}={text!r}: must be a number of seconds") from None
